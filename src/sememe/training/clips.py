"""Clips to train on, by number: of the procedural world, or of a dataset's folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sememe.data.dataset import ClipDataset
from sememe.data.latents import LatentItem
from sememe.data.manifest import TRAINING_NAME, read_manifest, read_vap_data
from sememe.errors import InputError
from sememe.files import hash_file
from sememe.training.recipes import WorldData
from sememe.training.world_clips import WorldItem, render_item, world_item

if TYPE_CHECKING:
    from sememe.world import Scene

MANIFEST_NAME = "manifest.jsonl"


@runtime_checkable
class ClipCollection(Protocol):
    """Clips by number, and what is known of them."""

    @property
    def version(self) -> str:
        """What tells this collection from every other one."""
        ...

    def __len__(self) -> int:
        """How many clips there are."""
        ...

    def frames(self, index: int) -> NDArray[np.uint8]:
        """The frames of a clip, (num_frames, height, width, 3) uint8."""
        ...

    def item(self, index: int) -> LatentItem:
        """What is known of a clip."""
        ...

    def first_frame_names(self) -> Sequence[str]:
        """The first frames that occur, each once, in the order of the clips."""
        ...

    def first_frame(self, name: str) -> NDArray[np.uint8]:
        """A first frame, (height, width, 3) uint8."""
        ...


class WorldClips:
    """Clips of the world, rendered when they are asked for."""

    def __init__(self, data: WorldData) -> None:
        self._data = data
        self._size = (data.height, data.width)

    @property
    def version(self) -> str:
        from sememe.world import WORLD_VERSION

        data = self._data
        shape = f"{data.num_frames} frames of {data.width}x{data.height} at {data.fps:g} fps"
        return f"world {WORLD_VERSION}, {shape}, {data.clips_per_scene} clips a scene"

    def __len__(self) -> int:
        return self._data.num_clips

    def frames(self, index: int) -> NDArray[np.uint8]:
        data = self._data
        return render_item(self._item(index), num_frames=data.num_frames, size=self._size, fps=data.fps).clip.frames

    def item(self, index: int) -> LatentItem:
        from sememe.world.captions import full_caption, neutral_caption
        from sememe.world.catalogue import condition

        item = self._item(index)
        scene = _scene(item.scene)
        return LatentItem(
            condition=item.condition,
            scene=str(item.scene),
            first_frame=str(item.scene),
            caption=neutral_caption(scene),
            full_caption=full_caption(scene, (condition(item.condition),)),
        )

    def first_frame_names(self) -> Sequence[str]:
        return [str(scene) for scene in range(self._item(len(self) - 1).scene + 1)]

    def first_frame(self, name: str) -> NDArray[np.uint8]:
        from sememe.world import render

        # Nothing has happened yet in the first frame, whatever the condition is.
        frames: NDArray[np.uint8] = render(_scene(int(name)), None, num_frames=1, size=self._size).clip.frames
        return frames[0]

    def _item(self, index: int) -> WorldItem:
        return world_item(index, self._data.clips_per_scene)


class DatasetClips:
    """The videos of a dataset's folder, which has a manifest or VAP-Data's csv.

    The size and length of the clips are those of `data`. A video that cannot be read is an error: what was encoded
    must not depend on when a file was damaged.
    """

    def __init__(self, folder: Path, data: WorldData) -> None:
        manifest = folder / MANIFEST_NAME
        self._index = manifest if manifest.is_file() else folder / TRAINING_NAME
        if not self._index.is_file():
            raise InputError(f"expected {MANIFEST_NAME} or {TRAINING_NAME} in the dataset's folder {folder}")
        samples = read_manifest(manifest) if manifest.is_file() else read_vap_data(folder)
        self._data = data
        self._clips = ClipDataset(folder, samples, num_frames=data.num_frames, size=(data.height, data.width))
        self._places = {sample.path: index for index, sample in enumerate(samples)}

    @property
    def version(self) -> str:
        data = self._data
        shape = f"{data.num_frames} frames of {data.width}x{data.height}"
        return f"dataset {hash_file(self._index)[:16]}, {shape}"

    def __len__(self) -> int:
        return len(self._clips)

    def frames(self, index: int) -> NDArray[np.uint8]:
        frames: NDArray[np.uint8] = self._clips.read(index).clip.frames
        return frames

    def item(self, index: int) -> LatentItem:
        sample = self._clips.samples[index]
        return LatentItem(
            condition=sample.condition,
            scene=sample.scene or sample.path,
            first_frame=sample.path,
            caption=sample.caption,
            full_caption=sample.full_caption or sample.caption,
        )

    def first_frame_names(self) -> Sequence[str]:
        return [sample.path for sample in self._clips.samples]

    def first_frame(self, name: str) -> NDArray[np.uint8]:
        return self.frames(self._places[name])[0]


def open_clips(data: WorldData, dataset: Path | None) -> ClipCollection:
    """The dataset's clips if there is one, else the world's."""
    return WorldClips(data) if dataset is None else DatasetClips(dataset, data)


@lru_cache(maxsize=64)
def _scene(seed: int) -> Scene:
    from sememe.world import random_scene

    return random_scene(seed)
