"""Random latents and texts for stages of an expert, at sizes of a few thousand weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

PAIRS: dict[str, Any] = {"num_references": 2, "targets_per_reference": 2, "same_scene_share": 0.0}


class Latents:
    """Random latents (channel, frame, height, width) of two conditions in three scenes each."""

    conditions = tuple(f"condition {index % 2}" for index in range(6))
    scenes = tuple(f"scene {index // 2}" for index in range(6))
    captions = full_captions = tuple(f"{index}" for index in range(6))
    buckets, references = ("",) * 6, ((),) * 6

    def select(self, name: str, indices: Tensor) -> Tensor:
        shape = (6, 3, 20) if name == "image" else (6, 4, 3, 4, 4)
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))[indices]


class Texts:
    """Captions are numbers, the empty one is 6; each has random embeddings of `num_tokens` tokens."""

    def __init__(self, num_tokens: int = 5) -> None:
        self.num_tokens = num_tokens

    def pick(self, captions: Sequence[str]) -> Tensor:
        return torch.tensor([int(caption or 6) for caption in captions])

    def embed(self, picked: Tensor) -> Tensor:
        return torch.randn(7, self.num_tokens, 16, generator=torch.Generator().manual_seed(0))[picked]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def gradients(loss: Tensor, model: Any) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [each for each in model.parameters() if each.requires_grad]))
