"""A recipe whose only array is cheap: the mean colour of every frame."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sememe.data.array_writer import ArrayEncoder
from sememe.data.cache_index import ClipItem
from sememe.training.clips import ClipCollection
from sememe.training.recipes import ArraysRecipe


class MeansRecipe(ArraysRecipe):
    more_arrays: ClassVar[str | None] = "workflows.mean_arrays:list_arrays"


class MeetingRecipe(MeansRecipe):
    """The same, of which two workers begin together: one that starts fast would do everything alone.

    Each notes its process in the folder `meeting`, and waits until another has.
    """

    more_arrays: ClassVar[str | None] = "workflows.mean_arrays:meet"

    meeting: Path


class Means:
    name, key = "means", "clip"

    def __init__(self, clips: ClipCollection) -> None:
        self._clips = clips
        self.made_by: Mapping[str, str] = {"means": "of frames"}

    def list_entries(self, items: Mapping[int, ClipItem]) -> Mapping[str, Any]:
        return {item.clip: index for index, item in items.items()}

    def preprocess(self, entries: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([self._clips.frames(index) for index in entries]))

    def encode(self, inputs: Tensor) -> Tensor:
        return inputs.float().mean((2, 3))


def list_arrays(recipe: MeansRecipe, clips: ClipCollection, device: torch.device) -> list[ArrayEncoder]:
    return [Means(clips)]


def meet(recipe: MeetingRecipe, clips: ClipCollection, device: torch.device) -> list[ArrayEncoder]:
    (recipe.meeting / str(os.getpid())).touch()
    for _ in range(3000):
        if len(list(recipe.meeting.iterdir())) > 1:
            return list_arrays(recipe, clips, device)
        time.sleep(0.1)
    raise AssertionError("expected two workers, got one")
