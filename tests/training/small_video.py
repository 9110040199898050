"""Small autoencoders of the folding kind, and small clips of the world, for tests of their training."""

from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCosmos
from torch import Tensor

from sememe.training.stage_autoencoder import to_video
from sememe.training.world_clips import render_item, world_item

SIZE = 16
NUM_FRAMES = 9


def make_folding_vae(seed: int = 0, latent_channels: int = 12, channels: int = 32) -> Any:
    """8 frames and 8x8 pixels per latent, all in the wavelet fold."""
    torch.manual_seed(seed)
    return AutoencoderKLCosmos(
        latent_channels=latent_channels,
        encoder_block_out_channels=(channels, channels),
        decode_block_out_channels=(channels, channels),
        attention_resolutions=(),
        resolution=SIZE,
        num_layers=1,
        patch_size=8,
        spatial_compression_ratio=8,
        temporal_compression_ratio=8,
        latents_mean=[0.0] * latent_channels,
        latents_std=[1.0] * latent_channels,
    )


@cache
def small_frames(index: int) -> np.ndarray:
    return render_item(world_item(index), num_frames=NUM_FRAMES, size=SIZE).clip.frames


def small_video(start: int, count: int) -> Tensor:
    """Clips of the world, (count, 3, 9, 16, 16) in [-1, 1]."""
    return to_video(np.stack([small_frames(index) for index in range(start, start + count)]))


class SmallClips:
    """Clips for the autoencoder's stage."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def frames(self, index: int) -> np.ndarray:
        return small_frames(index)
