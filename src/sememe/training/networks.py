"""Untrained networks and schedulers, as recipes describe them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ModelMixin, UniPCMultistepScheduler
from jaxtyping import Float
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from sememe.backbones.autoencoder import frames_to_video
from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder, fold
from sememe.backbones.text import clean_prompt
from sememe.compute.devices import choose_device
from sememe.training.clips import ClipSource
from sememe.training.recipes import LinearNetwork, SchedulerSettings, TextNetwork


@dataclass(frozen=True)
class PrincipalComponents:
    """Principal components of vectors.

    Attributes:
        mean: Mean of the vectors, float64.
        directions: Orthonormal columns, the most important first, float64.
        scales: Divisors that turn coefficients into latents, float64.
    """

    mean: Float[Tensor, "number"]
    directions: Float[Tensor, "number component"]
    scales: Float[Tensor, "component"]


@torch.no_grad()
def fit_principal_components(
    batches: Iterable[Float[Tensor, "_ number"]], num_components: int, whitening: float = 0.5
) -> PrincipalComponents:
    """Fit a code to vectors, given in batches.

    With `whitening` 1 all latents get unit variance, with 0 they keep the proportions of the coefficients; between,
    their standard deviations are the coefficients' to the power 1 - `whitening`, so that under noise the coarse
    components stay visible longest. The mean variance over the components is 1 in any case.
    """
    count, total, products = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for batch in batches:
        rows = batch.double()
        count += len(rows)
        total = total + rows.sum(dim=0)
        products = products + rows.T @ rows
    mean = total / count
    values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    deviations = values.flip(0)[:num_components].clamp_min(1e-12).sqrt()
    scales = deviations**whitening
    scales = scales * (deviations / scales).square().mean().sqrt()
    return PrincipalComponents(mean, vectors.flip(1)[:, :num_components], scales)


@torch.no_grad()
def start_from_principal_components(
    autoencoder: LinearVideoAutoencoder,
    batches: Iterable[Float[Tensor, "_ 3 _ _ _"]],  # batch, colour, frame, height, width; batches may differ
    whitening: float = 0.5,
) -> PrincipalComponents:
    """Write the principal components of clips, given in batches, into the linear maps of an autoencoder."""
    num_frames, num_pixels = autoencoder.num_frames, autoencoder.config.patch_size
    rows = (_blocks(video, num_frames, num_pixels) for video in batches)
    code = fit_principal_components(rows, autoencoder.config.latent_channels, whitening)
    into = (code.directions / code.scales).T
    autoencoder.encoder.weight.copy_(into)
    autoencoder.encoder.bias.copy_(-into @ code.mean)
    autoencoder.decoder.weight.copy_(code.directions * code.scales)
    autoencoder.decoder.bias.copy_(code.mean)
    return code


def _blocks(video: Tensor, num_frames: int, num_pixels: int) -> Tensor:
    padded = torch.cat([video[:, :, :1].expand(-1, -1, num_frames - 1, -1, -1), video], dim=2)
    # (batch, number, frame, height, width) -> (batch * frame * height * width, number)
    return fold(padded, num_frames, num_pixels).movedim(1, -1).flatten(0, -2)


_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"
_CLIPS_AT_ONCE = 32


def make_autoencoder(network: LinearNetwork) -> LinearVideoAutoencoder:
    """The autoencoder with random weights."""
    return LinearVideoAutoencoder(
        latent_channels=network.latent_channels,
        patch_size=network.patch_size,
        hidden_channels=network.hidden_channels,
        num_layers=network.num_layers,
        noise_level=network.noise_level,
        temporal_patch_size=network.temporal_patch_size,
    )


def start_autoencoder(network: LinearNetwork, clips: ClipSource, seed: int) -> LinearVideoAutoencoder:
    """The autoencoder with the principal components of some clips, and a refinement that is the identity."""
    torch.manual_seed(seed)
    autoencoder = make_autoencoder(network)
    count = min(network.num_start_clips, len(clips))
    indices = np.sort(np.random.default_rng(seed).choice(len(clips), count, replace=False))
    parts = (indices[start : start + _CLIPS_AT_ONCE].tolist() for start in range(0, count, _CLIPS_AT_ONCE))
    start_from_principal_components(autoencoder, (read_video(clips, part) for part in parts), network.whitening)
    return autoencoder


def read_video(clips: ClipSource, indices: Sequence[int]) -> Float[Tensor, "clip 3 frame height width"]:
    """Clips in [-1, 1]."""
    return frames_to_video(np.stack([clips.frames(int(index)) for index in indices]))


def make_text_encoder(text: TextNetwork, vocab_size: int) -> UMT5EncoderModel:
    """A text encoder with random weights."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocab_size,
            d_model=text.d_model,
            d_kv=text.d_kv,
            d_ff=text.d_ff,
            num_layers=text.num_layers,
            num_heads=text.num_heads,
            dropout_rate=0.0,
        )
    )


def train_tokenizer(captions: Sequence[str], text: TextNetwork) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer fitted to some of the captions; it ignores case."""
    tokenizer = Tokenizer(models.BPE(unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=text.vocab_size, special_tokens=[_PAD, _END, _UNKNOWN], show_progress=False
    )
    tokenizer.train_from_iterator([clean_prompt(caption) for caption in captions[:: text.caption_stride]], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {_END}", special_tokens=[(_END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        unk_token=_UNKNOWN,
        model_max_length=text.max_tokens,
    )


# Without its corrector, a step of UniPC of the first order is one of Euler.
_EULER: dict[str, Any] = {"solver_order": 1, "disable_corrector": list(range(50)), "lower_order_final": False}


def make_scheduler(settings: SchedulerSettings) -> FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler:
    """Return the diffusers scheduler of the settings."""
    if settings.kind == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=settings.shift)
    order = {} if settings.kind == "unipc" else _EULER
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=settings.shift,
        num_train_timesteps=1000,
        **order,
    )


def choose_attention(transformer: ModelMixin, device: str) -> None:
    """Choose the attention backend for training a diffusers transformer on a device, by the setting's name."""
    if choose_device(device).type == "cpu":
        # On a CPU the backward of torch's fused attention is slow in bfloat16.
        transformer.set_attention_backend("_native_math")
