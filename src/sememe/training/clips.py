"""Clips to train on, by number: of the procedural world, or of a dataset's folder."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sememe.data.array_cache import ClipItem
from sememe.data.dataset import ClipDataset
from sememe.data.manifest import TRAINING_NAME, read_manifest, read_vap_data
from sememe.errors import InputError
from sememe.files import hash_file
from sememe.training.recipes import ClipFormat, WorldData
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

    def item(self, index: int) -> ClipItem:
        """What is known of a clip."""
        ...

    def first_frame(self, index: int) -> NDArray[np.uint8]:
        """The first frame of a clip, (height, width, 3) uint8."""
        ...


class WorldClips:
    """Clips of the world, rendered when they are asked for."""

    def __init__(self, clips: ClipFormat, data: WorldData) -> None:
        self._format, self._data = clips, data
        self._size = (clips.height, clips.width)

    @property
    def version(self) -> str:
        from sememe.world import WORLD_VERSION

        clips = self._format
        shape = f"{clips.num_frames} frames of {clips.width}x{clips.height} at {clips.fps:g} fps"
        return f"world {WORLD_VERSION}, {shape}, {self._data.clips_per_scene} clips a scene"

    def __len__(self) -> int:
        return self._data.num_clips

    def frames(self, index: int) -> NDArray[np.uint8]:
        clips = self._format
        return render_item(self._item(index), num_frames=clips.num_frames, size=self._size, fps=clips.fps).clip.frames

    def item(self, index: int) -> ClipItem:
        from sememe.world.captions import full_caption, neutral_caption
        from sememe.world.catalogue import condition

        item = self._item(index)
        scene = _scene(item.scene)
        return ClipItem(
            clip=str(index),
            condition=item.condition,
            scene=str(item.scene),
            first_frame=str(item.scene),
            caption=neutral_caption(scene),
            full_caption=full_caption(scene, (condition(item.condition),)),
            split="unseen" if item.condition in _unseen_conditions() else "train",
        )

    def first_frame(self, index: int) -> NDArray[np.uint8]:
        from sememe.world import render

        # Nothing has happened yet in the first frame, whatever the condition is.
        frames: NDArray[np.uint8] = render(
            _scene(self._item(index).scene), None, num_frames=1, size=self._size
        ).clip.frames
        return frames[0]

    def _item(self, index: int) -> WorldItem:
        return world_item(index, self._data.clips_per_scene)


class DatasetClips:
    """The videos of a dataset's folder, which has a manifest or VAP-Data's csv.

    A video that cannot be read is an error: what was encoded must not depend on when a file was damaged.
    """

    def __init__(self, folder: Path, clips: ClipFormat) -> None:
        manifest = folder / MANIFEST_NAME
        self._index = manifest if manifest.is_file() else folder / TRAINING_NAME
        if not self._index.is_file():
            raise InputError(f"expected {MANIFEST_NAME} or {TRAINING_NAME} in the dataset's folder {folder}")
        samples = read_manifest(manifest) if manifest.is_file() else read_vap_data(folder)
        self._format = clips
        self._clips = ClipDataset(
            folder,
            samples,
            num_frames=clips.num_frames,
            size=(clips.height, clips.width),
            sampling=clips.sampling,
            fps=clips.fps if clips.sampling == "fps" else None,
        )

    @property
    def version(self) -> str:
        clips = self._format
        rate = f"{clips.fps:g} fps" if clips.sampling == "fps" else clips.sampling
        shape = f"{clips.num_frames} frames of {clips.width}x{clips.height}"
        return f"dataset {hash_file(self._index)[:16]}, {shape}, {rate}"

    def __len__(self) -> int:
        return len(self._clips)

    def frames(self, index: int) -> NDArray[np.uint8]:
        frames: NDArray[np.uint8] = self._clips.read(index).clip.frames
        return frames

    def item(self, index: int) -> ClipItem:
        sample = self._clips.samples[index]
        return ClipItem(
            clip=sample.path,
            condition=sample.condition,
            scene=sample.scene or sample.path,
            first_frame=sample.path,
            caption=sample.caption,
            full_caption=sample.full_caption or sample.caption,
            split=sample.split,
        )

    def first_frame(self, index: int) -> NDArray[np.uint8]:
        return self.frames(index)[0]


def open_clips(clips: ClipFormat, data: WorldData, dataset: Path | None) -> ClipCollection:
    """The dataset's clips if there is one, else the world's."""
    return WorldClips(clips, data) if dataset is None else DatasetClips(dataset, clips)


@lru_cache(maxsize=1)
def _unseen_conditions() -> frozenset[str]:
    from sememe.world import conditions

    return frozenset(conditions(split="unseen"))


@lru_cache(maxsize=64)
def _scene(seed: int) -> Scene:
    from sememe.world import random_scene

    return random_scene(seed)
