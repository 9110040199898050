"""Encoding and decoding in tiles, where an autoencoder can: less memory, at the price of seams that are blended.

Approximate: a tile does not see what lies outside it.
"""

from typing import Any

from torch import nn

from sememe.errors import InputError

_DEFAULT_TILE = 256


def enable_tiling(vae: nn.Module, tile_size: int = _DEFAULT_TILE) -> None:
    """Encodes and decodes in square tiles that overlap by a quarter.

    Args:
        vae: `AutoencoderKLWan` or `AutoencoderKLCogVideoX`.
        tile_size: pixels, a multiple of 4 latents: of 32 pixels, or of 64 where a latent is 16 pixels wide.

    Raises:
        InputError: an autoencoder that cannot, or a size that does not divide into latents.
    """
    autoencoder: Any = vae
    if type(vae).__name__ not in ("AutoencoderKLWan", "AutoencoderKLCogVideoX"):
        raise InputError(f"{type(vae).__name__} cannot work in tiles; turn them off, or use slicing for batches")
    step = 4 * _spatial_ratio(vae)
    if tile_size < step or tile_size % step:
        raise InputError(f"tile_size must be a multiple of {step} pixels for this autoencoder, got {tile_size}")
    if type(vae).__name__ == "AutoencoderKLWan":
        autoencoder.enable_tiling(tile_size, tile_size, tile_size * 3 // 4, tile_size * 3 // 4)
    else:
        autoencoder.enable_tiling(tile_size, tile_size, 0.25, 0.25)


def enable_slicing(vae: nn.Module) -> None:
    """Encodes and decodes the videos of a batch one by one; the result is the same but for rounding."""
    autoencoder: Any = vae
    autoencoder.enable_slicing()


def check_tiling(vae: nn.Module) -> None:
    """Raises `InputError` where tiling is on but would give a video of another size."""
    autoencoder: Any = vae
    if type(vae).__name__ != "AutoencoderKLCogVideoX" or not autoencoder.use_tiling:
        return
    ratio = _spatial_ratio(vae)
    for side in ("height", "width"):
        latent, pixels = (getattr(autoencoder, f"tile_{space}_min_{side}") for space in ("latent", "sample"))
        overlap = getattr(autoencoder, f"tile_overlap_factor_{side}")
        # From tile to tile, and what is kept of each, in pixels: as the stock class rounds them.
        decoded = (int(latent * (1 - overlap)) * ratio, pixels - int(pixels * overlap))
        encoded = (int(pixels * (1 - overlap)), (latent - int(latent * overlap)) * ratio)
        if len({*decoded, *encoded}) != 1:
            raise InputError(
                f"tiles of {pixels} pixels in {side} that overlap by {overlap:g} do not fit together in "
                f"{type(vae).__name__}; choose sizes of which the overlap is a whole number of latents, "
                "as enable_tiling of sememe.compute.tiling does"
            )


def _spatial_ratio(vae: nn.Module) -> int:
    autoencoder: Any = vae
    if type(vae).__name__ == "AutoencoderKLWan":
        return autoencoder.spatial_compression_ratio
    return 2 ** (len(autoencoder.config.block_out_channels) - 1)
