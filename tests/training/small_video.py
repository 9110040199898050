"""Small linear autoencoders, and small clips of the world, for tests of their training."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from sememe.backbones.autoencoder import frames_to_video
from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder
from sememe.training.clips import render_item, world_item

SIZE = 16
NUM_FRAMES = 9


def make_linear_vae(seed: int = 0) -> LinearVideoAutoencoder:
    """8 frames and 8x8 pixels per latent, 12 channels."""
    torch.manual_seed(seed)
    return LinearVideoAutoencoder(12, hidden_channels=16, num_layers=1)


@cache
def small_frames(index: int) -> np.ndarray:
    return render_item(world_item(index), num_frames=NUM_FRAMES, size=SIZE).clip.frames


def small_video(start: int, count: int) -> Tensor:
    """Clips of the world, (count, 3, 9, 16, 16) in [-1, 1]."""
    return frames_to_video(np.stack([small_frames(index) for index in range(start, start + count)]))


class SmallClips:
    """Clips for the autoencoder's stage."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def frames(self, index: int) -> np.ndarray:
        return small_frames(index)
