"""Clips of a dataset's folder, or of a cache that keeps frames."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sememe.data.array_cache import INDEX_NAME, ArrayCache, ClipItem
from sememe.data.manifest import hash_videos, read_samples
from sememe.errors import InputError, VideoError
from sememe.training.clips import ClipCollection, LookClips, ScriptClips, WorldClips
from sememe.training.recipes import ClipFormat, WorldData
from sememe.video import read_clip

FRAMES_ARRAY = "frames"
"""Name of the array that holds frames, (clip, frame, height, width, channel): colours 0 to 255, and what follows."""


class CachedClips:
    """The clips of a cache that holds their frames, which are of one length and size."""

    def __init__(self, folder: Path, clips: ClipFormat) -> None:
        self.cache = ArrayCache.open(folder)
        self.cache.describe(FRAMES_ARRAY)
        found, expected = self.cache.arrays[FRAMES_ARRAY].shape[:3], (clips.num_frames, clips.height, clips.width)
        if found != expected:
            raise InputError(
                f"expected clips of {expected} frames, height and width in {folder}, got {found}; set clips to these"
            )

    @property
    def origin(self) -> str:
        return self.cache.origin

    @property
    def version(self) -> str:
        return self.cache.version

    @property
    def num_frames(self) -> int:
        return self.cache.arrays[FRAMES_ARRAY].shape[0]

    def __len__(self) -> int:
        return len(self.cache)

    def frames(self, index: int) -> NDArray[np.uint8]:
        frames: NDArray[np.uint8] = self.cache.select(FRAMES_ARRAY, [index])[0, ..., :3].byte().numpy()
        return frames

    def item(self, index: int) -> ClipItem:
        return self.cache.items[index]

    def first_frame(self, index: int) -> NDArray[np.uint8]:
        return self.frames(index)[0]


class DatasetClips:
    """The videos of a dataset's folder, which has a manifest or VAP-Data's csv.

    Clips are known by the content of their files, all of which are read once to begin with: a file that was changed is
    another clip. `frames` and `first_frame` raise `VideoError` for a video that cannot be read, or is not the one that
    the manifest describes.
    """

    def __init__(self, folder: Path, clips: ClipFormat, min_score: float = 0.0) -> None:
        self.samples = read_samples(folder, min_score)
        self._folder, self._format = folder, clips
        self._hashes = hash_videos(folder, self.samples)

    @property
    def origin(self) -> str:
        clips = self._format
        rate = f"{clips.fps:g} fps" if clips.sampling == "fps" else clips.sampling
        return f"videos, {clips.num_frames} frames of {clips.width}x{clips.height}, {rate}"

    @property
    def version(self) -> str:
        about = json.dumps([asdict(self.item(index)) for index in range(len(self))])
        return f"dataset {hashlib.sha256(about.encode()).hexdigest()[:16]}, {self.origin}"

    @property
    def num_frames(self) -> int:
        return self._format.num_frames

    def __len__(self) -> int:
        return len(self.samples)

    def frames(self, index: int) -> NDArray[np.uint8]:
        return self._read(index, self._format.num_frames)

    def item(self, index: int) -> ClipItem:
        sample = self.samples[index]
        digest = self._hashes[index]
        content = sample.path if digest is None else digest[:32]
        return ClipItem(
            clip=content,
            condition=sample.condition,
            scene=sample.scene or sample.path,
            first_frame=content,
            caption=sample.caption,
            full_caption=sample.full_caption or sample.caption,
            split=sample.split,
        )

    def first_frame(self, index: int) -> NDArray[np.uint8]:
        # All ways of sampling begin with the first frame, so that no other one is decoded.
        return self._read(index, 1)[0]

    def _read(self, index: int, num_frames: int) -> NDArray[np.uint8]:
        sample, clips = self.samples[index], self._format
        path = self._folder / sample.path
        if sample.sha256 is not None and self._hashes[index] not in (None, sample.sha256):
            raise VideoError(f"{path} is not the file that the manifest describes: its SHA-256 differs")
        frames: NDArray[np.uint8] = read_clip(
            path,
            num_frames=num_frames,
            size=(clips.height, clips.width),
            sampling=clips.sampling,
            fps=clips.fps if clips.sampling == "fps" else None,
        ).frames
        return frames


def open_clips(clips: ClipFormat, data: WorldData, dataset: Path | None, min_score: float = 0.0) -> ClipCollection:
    """The clips of a dataset, those above a score, or of a cache if there is one, else the world's."""
    if dataset is not None:
        is_cache = (dataset / INDEX_NAME).is_file()
        return CachedClips(dataset, clips) if is_cache else DatasetClips(dataset, clips, min_score)
    kinds: dict[str, type[WorldClips | ScriptClips | LookClips]] = {
        "conditions": WorldClips,
        "scripts": ScriptClips,
        "looks": LookClips,
    }
    return kinds[data.kind](clips, data)
