"""Networks and schedulers as recipes describe them, before any training."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder
from sememe.backbones.text import clean_prompt
from sememe.training.principal import start_from_principal_components
from sememe.training.recipes import LinearNetwork, SchedulerSettings, TextNetwork
from sememe.training.stage_autoencoder import ClipSource, to_video

_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"
_CLIPS_AT_ONCE = 32


def make_autoencoder(network: LinearNetwork) -> LinearVideoAutoencoder:
    """The autoencoder at random weights."""
    return LinearVideoAutoencoder(
        latent_channels=network.latent_channels,
        patch_size=network.patch_size,
        hidden_channels=network.hidden_channels,
        num_layers=network.num_layers,
        noise_level=network.noise_level,
    )


def start_autoencoder(network: LinearNetwork, clips: ClipSource, seed: int) -> LinearVideoAutoencoder:
    """The autoencoder as the principal components of some clips; its refinement changes nothing yet."""
    torch.manual_seed(seed)
    autoencoder = make_autoencoder(network)
    count = min(network.num_start_clips, len(clips))
    indices = np.sort(np.random.default_rng(seed).choice(len(clips), count, replace=False))
    start_from_principal_components(autoencoder, _read_batches(clips, indices.tolist()), network.whitening)
    return autoencoder


def read_video(clips: ClipSource, indices: Sequence[int]) -> Tensor:
    """Clips as (clip, 3, frame, height, width) in [-1, 1]."""
    return to_video(np.stack([clips.frames(int(index)) for index in indices]))


def make_text_encoder(text: TextNetwork, vocab_size: int) -> UMT5EncoderModel:
    """A text encoder at random weights."""
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
    """A tokenizer of byte pairs, fitted to some of the captions; case does not matter to it."""
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


def make_scheduler(settings: SchedulerSettings) -> FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler:
    """Return the diffusers scheduler of the settings."""
    if settings.kind == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=settings.shift)
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=settings.shift, num_train_timesteps=1000
    )


def _read_batches(clips: ClipSource, indices: Sequence[int]) -> Iterator[Tensor]:
    for start in range(0, len(indices), _CLIPS_AT_ONCE):
        yield read_video(clips, indices[start : start + _CLIPS_AT_ONCE])
