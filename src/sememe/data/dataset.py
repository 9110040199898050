"""Reading the clips of a list of samples, and setting aside those that cannot be read."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sememe.data.manifest import VideoSample
from sememe.errors import InputError, VideoError
from sememe.files import hash_file, write_text
from sememe.video import Clip, Sampling, VideoLimits, read_clip


@dataclass(frozen=True, kw_only=True)
class LoadedSample:
    """A sample with its clip; `index` is its place in the dataset."""

    index: int
    sample: VideoSample
    clip: Clip


@dataclass(frozen=True, kw_only=True)
class QuarantinedSample:
    """A sample whose file cannot be used. `sha256` is None where there is no file."""

    path: str
    reason: str
    sha256: str | None


class ClipDataset:
    """The clips of a dataset's folder, all of one length and size.

    `size` is (height, width); videos are scaled to cover it and cropped. See `read_clip` for `sampling` and `fps`.
    """

    def __init__(
        self,
        folder: Path | str,
        samples: Sequence[VideoSample],
        *,
        num_frames: int,
        size: tuple[int, int],
        sampling: Sampling = "even",
        fps: float | None = None,
        limits: VideoLimits | None = None,
        max_bad_share: float = 0.01,
    ) -> None:
        if not samples:
            raise InputError(f"a dataset needs at least one sample, got none for {folder}")
        if not 0.0 <= max_bad_share <= 1.0:
            raise InputError(f"max_bad_share must be between 0 and 1, got {max_bad_share}")
        self.folder = Path(folder)
        self.samples = tuple(samples)
        self._num_frames, self._size, self._sampling, self._fps = num_frames, size, sampling, fps
        self._limits, self._max_bad_share = limits, max_bad_share
        self._quarantine: dict[int, QuarantinedSample] = {}

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def quarantine(self) -> tuple[QuarantinedSample, ...]:
        """The samples that were found bad so far, in the order of the dataset."""
        return tuple(self._quarantine[index] for index in sorted(self._quarantine))

    def read(self, index: int) -> LoadedSample:
        """Read one clip. Raises `VideoError` if it cannot be used."""
        sample = self.samples[index]
        clip = read_clip(
            self.folder / sample.path,
            num_frames=self._num_frames,
            size=self._size,
            sampling=self._sampling,
            fps=self._fps,
            limits=self._limits,
        )
        return LoadedSample(index=index, sample=sample, clip=clip)

    def iterate(self, indices: Iterable[int] | None = None) -> Iterator[LoadedSample]:
        """Read clips one by one, by default all in order; bad ones are put in `quarantine` and passed over.

        Raises `InputError` as soon as more than `max_bad_share` of the whole dataset is bad.
        """
        for index in range(len(self)) if indices is None else indices:
            if index in self._quarantine:
                continue
            try:
                loaded = self.read(index)
            except VideoError as error:
                self._set_aside(index, error)
                continue
            yield loaded

    def write_quarantine(self, path: Path | str) -> None:
        """Write the bad samples as JSON lines: path, reason, hash. Raises `OutputError` if it cannot."""
        write_text(path, "".join(json.dumps(asdict(bad)) + "\n" for bad in self.quarantine))

    def _set_aside(self, index: int, error: VideoError) -> None:
        sample = self.samples[index]
        file = self.folder / sample.path
        self._quarantine[index] = QuarantinedSample(
            path=sample.path, reason=str(error), sha256=hash_file(file) if file.is_file() else None
        )
        num_bad = len(self._quarantine)
        if num_bad > self._max_bad_share * len(self):
            raise InputError(
                f"{num_bad} of {len(self)} videos in {self.folder} cannot be read, more than the "
                f"{self._max_bad_share:.1%} that are tolerated (max_bad_share); the last: {error}"
            ) from error
