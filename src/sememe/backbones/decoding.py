"""Decoding of long videos in chunks, so that frames can be written while later ones are decoded."""

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.utils.torch_utils import get_module_execution_device

from sememe.backbones.autoencoder import (
    Autoencoder,
    Latents,
    Video,
    decode_latents,
    finish_video,
    latent_grid,
    latent_statistics,
)
from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder


@torch.no_grad()
def decode_in_chunks(
    vae: Autoencoder, latents: Latents, chunk: int = 8, *, span: tuple[int, int] | None = None
) -> Iterator[Video]:
    """Decode normalised latents, a few latent frames after the other; together the chunks are the whole video.

    Each chunk is decoded with all that the autoencoder sees of other latent frames: seams are those of decoding at
    once. An autoencoder that works in tiles, or is not known here, gives a single chunk.

    Args:
        vae: Autoencoder.
        latents: Normalised latents.
        chunk: Latent frames per chunk, at least 1.
        span: First latent frame to decode, and the one after the last; None for all.

    Yields:
        Frames in [-1, 1], in the autoencoder's precision.

    Raises:
        InputError: The video is not a number somewhere.
    """
    assert chunk >= 1, chunk
    start, stop = span or (0, latents.shape[2])
    if isinstance(vae, LinearVideoAutoencoder):
        yield from _decode_linear(vae, latents, chunk, start, stop)
    elif isinstance(vae, AutoencoderKLWan) and not vae.use_tiling:
        yield from _decode_causal(vae, latents, chunk, start, stop)
    else:
        grid = latent_grid(vae)
        yield decode_latents(vae, latents)[:, :, slice(*(max(0, grid.count_frames(count)) for count in (start, stop)))]


def _decode_linear(vae: LinearVideoAutoencoder, latents: Latents, chunk: int, start: int, stop: int) -> Iterator[Video]:
    """Decode with the neighbours of each chunk, and the first latent frame, which all are refined by."""
    size = vae.num_frames
    for first in range(start, stop, chunk):
        last = min(first + chunk, stop)
        seen = [*range(max(first - 1, 0), min(last + 1, latents.shape[2]))]
        if first > 1:
            seen = [0, *seen]
        num_before = sum(place < first for place in seen)
        video = decode_latents(vae, latents[:, :, seen])
        # The first latent frame gives one frame, the others `size` each.
        begin = 0 if num_before == 0 else (num_before - 1) * size + 1
        yield video[:, :, begin : begin + (last - first) * size - (size - 1) * (first == 0)]


def _decode_causal(vae: AutoencoderKLWan, latents: Latents, chunk: int, start: int, stop: int) -> Iterator[Video]:
    """Decode as the stock method does, which keeps features of earlier frames, but hand frames on in between."""
    hook = getattr(vae, "_hf_hook", None)
    if hook is not None:  # as on the stock method: offload brings the autoencoder to its device
        hook.pre_forward(vae)
    latents = latents.to(get_module_execution_device(vae), vae.dtype)
    mean, std = latent_statistics(vae, latents)
    vae.clear_cache()
    codes, frames = vae.post_quant_conv(latents * std + mean), []
    try:
        for index in range(stop):
            vae._conv_idx = [0]
            first = {"first_chunk": True} if index == 0 else {}
            video = vae.decoder(
                codes[:, :, index : index + 1],
                feat_cache=vae._feat_map,
                feat_idx=vae._conv_idx,
                **first,
            )
            if index < start:
                continue
            frames.append(video)
            if len(frames) == chunk or index == stop - 1:
                joined = torch.cat(frames, dim=2)
                patch = vae.config.patch_size
                yield finish_video(joined if patch is None else unpatchify(joined, patch_size=patch))
                frames = []
    finally:
        vae.clear_cache()
