"""Networks as recipes describe them, before their training."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder
from sememe.backbones.text import clean_prompt
from sememe.training.principal import start_from_principal_components
from sememe.training.stage_autoencoder import ClipSource, to_video
from sememe.video_as_prompt.recipe_records import LinearNetwork, TextNetwork, WanNetwork

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


def make_transformer(network: WanNetwork, latent_channels: int, text_dim: int) -> WanTransformer3DModel:
    """An image-to-video transformer at random weights: its input is latents, mask and condition."""
    return WanTransformer3DModel(
        patch_size=(1, network.patch_size, network.patch_size),
        num_attention_heads=network.num_attention_heads,
        attention_head_dim=network.attention_head_dim,
        in_channels=2 * latent_channels + network.num_mask_channels,
        out_channels=latent_channels,
        text_dim=text_dim,
        freq_dim=network.freq_dim,
        ffn_dim=network.ffn_dim,
        num_layers=network.num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=network.rope_max_seq_len,
    )


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


def fingerprint_encoder(autoencoder: nn.Module) -> str:
    """The sha256 of all that decides on latents: the encoder's weights and the latents' statistics.

    The decoder has no part in it: it may be trained further, and latents that were cached stay valid.
    """
    config: Any = autoencoder.config
    about = {name: config.get(name) for name in ("_class_name", "latents_mean", "latents_std", "scaling_factor")}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(autoencoder.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_batches(clips: ClipSource, indices: Sequence[int]) -> Iterator[Tensor]:
    for start in range(0, len(indices), _CLIPS_AT_ONCE):
        yield read_video(clips, indices[start : start + _CLIPS_AT_ONCE])
