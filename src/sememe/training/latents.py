"""Cached latents as the data of a training run."""

from collections.abc import Mapping
from pathlib import Path

import torch

from sememe.data.latents import CacheOrigin, LatentCache
from sememe.errors import InputError

SUMMARY_NAME = "summary.json"
"""File that is written last, so that a cache without it is known to be unfinished."""


def open_latents(folder: Path, device: torch.device | None = None) -> LatentCache:
    """Read a finished cache.

    Args:
        folder: What `sememe precompute` wrote.
        device: Where training runs. On a GPU the latents stay there: a batch then costs no transfer.

    Raises:
        InputError: There is none, or it is not finished.
    """
    if not (folder / SUMMARY_NAME).is_file():
        state = "is not finished" if (folder / "index.json").is_file() else "does not exist"
        raise InputError(f"the latent cache {folder} {state}; run `sememe precompute ... --output-dir {folder}`")
    cache = LatentCache.open(folder)
    return cache.to(device) if device is not None and device.type == "cuda" else cache


def describe_origin(origin: CacheOrigin) -> Mapping[str, str]:
    """What identifies latents, as inputs of a run."""
    return {
        "clips": origin.dataset,
        "autoencoder": origin.autoencoder,
        "first_frame_fill": origin.first_frame_fill,
    }
