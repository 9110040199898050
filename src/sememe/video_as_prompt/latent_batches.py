"""Read cached latents in training stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor


@runtime_checkable
class LatentSource(Protocol):
    """Named arrays of clips by number; `data.array_cache.ArrayCache` is one."""

    @property
    def conditions(self) -> Sequence[str]:
        """The condition that each item shows."""
        ...

    @property
    def scenes(self) -> Sequence[str]:
        """The scene that each item is filmed in."""
        ...

    @property
    def captions(self) -> Sequence[str]:
        """Who and where, for each item."""
        ...

    @property
    def full_captions(self) -> Sequence[str]:
        """Who, where and what happens, for each item."""
        ...

    def select(self, name: str, indices: Tensor) -> Tensor:
        """Entries of items, (item, channel, frame, height, width) for "clean" and "first_frame"."""
        ...


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """Make a NumPy generator seeded by a CPU generator of torch."""
    return np.random.Generator(np.random.PCG64(int(torch.randint(1 << 62, (1,), generator=generator))))
