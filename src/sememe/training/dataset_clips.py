"""Clips of a dataset's folder, or of a cache that keeps frames."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sememe.data.array_cache import ArrayCache
from sememe.data.buckets import Bucket, choose_bucket
from sememe.data.cache_index import FIELDS, ClipItem, has_index
from sememe.data.manifest import VideoSample, hash_videos, read_samples
from sememe.data.storage import Storage
from sememe.errors import InputError, RecipeError, VideoError
from sememe.training.clips import ClipCollection, LookClips, ScriptClips, WorldClips
from sememe.training.recipes import ClipFormat, WorldData
from sememe.video import read_clip
from sememe.video.resizing import pick_frames_at
from sememe.video.source import survey_video

_NUM_READERS = 4
_BLOCK = 64  # files that are examined together, in threads

FRAMES_ARRAY = "frames"
"""Name of the array that holds frames, (clip, frame, height, width, channel): colours 0 to 255, and what follows."""


class CachedClips:
    """The clips of a cache that holds their frames, which are of one length and size."""

    def __init__(self, folder: Path, clips: ClipFormat, memory_bytes: int | None = None) -> None:
        self.cache = ArrayCache.open(folder, memory_bytes=memory_bytes)
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

    def count_frames(self, index: int) -> int:
        return self.cache.arrays[FRAMES_ARRAY].shape[0]

    def __len__(self) -> int:
        return len(self.cache)

    def frames(self, index: int) -> NDArray[np.uint8]:
        frames: NDArray[np.uint8] = self.cache.select(FRAMES_ARRAY, [index])[0, ..., :3].byte().numpy()
        return frames

    def item(self, index: int) -> ClipItem:
        return self.cache.item(index)

    def first_frame(self, index: int) -> NDArray[np.uint8]:
        return self.frames(index)[0]


class DatasetClips:
    """The videos of a dataset's folder, which has a manifest or VAP-Data's csv.

    Clips are identified by the content of their files: a changed file is another clip. A file is read for that when its
    clip is first asked for, together with its neighbours; `version` needs all. `frames` and `first_frame` raise
    `VideoError` for a video that cannot be read, or is not the one that the manifest describes.
    """

    def __init__(self, folder: Path, clips: ClipFormat, min_score: float = 0.0) -> None:
        self.samples = read_samples(folder, min_score)
        self._folder, self._format = folder, clips
        self._paths = {sample.path for sample in self.samples}
        self._hashes: dict[str, str | None] = {}
        self._buckets: dict[int, Bucket] = {}

    @property
    def origin(self) -> str:
        clips = self._format
        rate = f"{clips.fps:g} fps" if clips.sampling == "fps" else clips.sampling
        return f"videos, {clips.describe()}, {rate}"

    @property
    def version(self) -> str:
        digest = hashlib.sha256()
        for index in range(len(self)):
            item = self.item(index)
            digest.update(json.dumps([getattr(item, name) for name in FIELDS]).encode())
        return f"dataset {digest.hexdigest()[:16]}, {self.origin}"

    def count_frames(self, index: int) -> int:
        return self._bucket(index).num_frames

    def __len__(self) -> int:
        return len(self.samples)

    def frames(self, index: int) -> NDArray[np.uint8]:
        return self._read(index, self._bucket(index).num_frames)

    def item(self, index: int) -> ClipItem:
        sample = self.samples[index]
        if sample.path not in self._hashes:
            self._hash([each.path for each in self.samples[self._block(index)]])
        content = self._make_key(sample.path)
        self._hash([path for path in sample.references if path in self._paths])
        # Other ways of sampling change when things happen.
        segments = sample.segments if self._format.sampling == "fps" else ()
        return ClipItem(
            clip=content,
            condition=sample.condition,
            scene=sample.scene or sample.path,
            first_frame=content,
            caption=sample.caption,
            full_caption=sample.full_caption or sample.caption,
            split=sample.split,
            references=tuple(self._make_key(path) for path in sample.references if path in self._paths),
            bucket=str(self._bucket(index)) if self._format.buckets else "",
            segment_captions=tuple(caption for _, caption in segments),
            segment_ends=tuple(end for end, _ in segments),
        )

    def first_frame(self, index: int) -> NDArray[np.uint8]:
        # All ways of sampling begin with the first frame, so that no other one is decoded.
        return self._read(index, 1)[0]

    def _read(self, index: int, num_frames: int) -> NDArray[np.uint8]:
        sample, clips, bucket = self.samples[index], self._format, self._bucket(index)
        path = self._folder / sample.path
        self._hash([sample.path])
        if sample.sha256 is not None and self._hashes[sample.path] not in (None, sample.sha256):
            raise VideoError(f"{path} is not the file that the manifest describes: its SHA-256 differs")
        frames: NDArray[np.uint8] = read_clip(
            path,
            num_frames=num_frames,
            size=(bucket.height, bucket.width),
            sampling=clips.sampling,
            fps=clips.fps if clips.sampling == "fps" else None,
        ).frames
        return frames

    def _hash(self, paths: Sequence[str]) -> None:
        """Hash files, those that are not yet known."""
        new = [path for path in dict.fromkeys(paths) if path not in self._hashes]
        if new:
            self._hashes |= zip(new, hash_videos(self._folder, new), strict=True)

    def _make_key(self, path: str) -> str:
        # The key of an unreadable file is never used.
        digest = self._hashes[path]
        return path if digest is None else digest[:32]

    def _bucket(self, index: int) -> Bucket:
        buckets = self._format.list_buckets()
        if len(buckets) == 1:
            return buckets[0]
        if index not in self._buckets:
            block = self._block(index)
            with ThreadPoolExecutor(_NUM_READERS) as pool:
                found = list(pool.map(self._choose_bucket, self.samples[block]))
            self._buckets |= enumerate(found, block.start)
        return self._buckets[index]

    @staticmethod
    def _block(index: int) -> slice:
        first = index // _BLOCK * _BLOCK
        return slice(first, first + _BLOCK)

    def _choose_bucket(self, sample: VideoSample) -> Bucket:
        """Choose by the displayed size of a video: upright, with square pixels. An unreadable video gets the first
        bucket."""
        buckets, clips = self._format.list_buckets(), self._format
        try:
            survey = survey_video(self._folder / sample.path)
            first = read_clip(self._folder / sample.path, num_frames=1, sampling="first", survey=survey)
        except VideoError:
            return buckets[0]
        num_frames = len(survey.times)
        if clips.sampling == "fps":
            num_frames = len(pick_frames_at(survey.times, None, "fps", target_fps=clips.fps))
        elif clips.sampling == "even":
            num_frames = max(bucket.num_frames for bucket in buckets)
        return choose_bucket(buckets, num_frames, *first.size)


def open_clips(
    clips: ClipFormat,
    data: WorldData,
    dataset: Path | None,
    min_score: float = 0.0,
    memory_bytes: int | None = None,
) -> ClipCollection:
    """The clips of a dataset, those above a score, or of a cache if there is one, else the world's.

    `memory_bytes` is what a cache may hold in memory (see `ArrayCache.open`).
    """
    if dataset is not None:
        if not has_index(Storage(dataset)):
            return DatasetClips(dataset, clips, min_score)
        _check_one_size(clips, f"the cache {dataset}")
        return CachedClips(dataset, clips, memory_bytes)
    if data.kind != "conditions":
        _check_one_size(clips, f"data.kind {data.kind}")
    kinds: dict[str, type[WorldClips | ScriptClips | LookClips]] = {
        "conditions": WorldClips,
        "scripts": ScriptClips,
        "looks": LookClips,
    }
    return kinds[data.kind](clips, data)


def _check_one_size(clips: ClipFormat, source: str) -> None:
    if clips.buckets:
        raise RecipeError(f"clips.buckets have no effect on clips of {source}; leave them out")
