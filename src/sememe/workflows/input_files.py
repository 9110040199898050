"""Files that a generation reads: surveyed before the slow part, decoded once at the size that the model needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sememe.errors import VideoError
from sememe.files import hash_file
from sememe.video import Clip, read_clip, read_image
from sememe.video.source import Survey, survey_video

_ENOUGH = 2048  # pixels a side, more than models make


@dataclass(frozen=True)
class VideoFile:
    """A video file, its hash, and what its packets tell of a section of it, of which no frame has been decoded."""

    path: Path
    sha256: str
    survey: Survey

    @classmethod
    def survey_path(cls, path: Path, section: Mapping[str, Any], least_frames: int = 1) -> "VideoFile":
        """Survey a video file, or the section of one that has at least so many frames, 1 or 2.

        `section` holds `start`, `end` and `num_frames` for `survey_video`; empty for the whole file. Raises errors as
        this does, and `VideoError` for fewer frames.
        """
        survey = survey_video(path, **section)
        if len(survey.times) < least_frames:
            where = " in the section that is read" if any(section.values()) else ""
            raise VideoError(
                f"expected a video of at least 2 frames, but {path} has 1{where}: a still shows no motion to copy"
            )
        return cls(path, hash_file(path), survey)

    def read(self, reading: Mapping[str, Any]) -> Clip:
        """Decode just what a model reads; `reading` holds arguments of `read_clip`."""
        return read_clip(self.path, survey=self.survey, **reading)

    def to_document(self) -> dict[str, Any]:
        """Return path, hash and shape, as plain values."""
        survey = self.survey
        shape = {"num_frames": len(survey.times), "height": survey.height, "width": survey.width, "fps": survey.fps}
        return {"path": str(self.path), "sha256": self.sha256} | shape


@dataclass(frozen=True)
class ImageFile:
    """A picture file, its hash, and its pixels: uint8 (height, width, 3), upright, and opaque on white."""

    path: Path
    sha256: str
    pixels: np.ndarray

    @classmethod
    def read(cls, path: Path, largest_side: int = 0) -> "ImageFile":
        """Read a picture file as `read_image` does; one that is much larger than any model needs is scaled down.

        `largest_side` is that of the result in pixels, where it is known.
        """
        pixels = read_image(path, enough=max(_ENOUGH, largest_side))  # first, to say what is wrong with a file
        return cls(path, hash_file(path), pixels)

    def to_document(self) -> dict[str, Any]:
        """Return path, hash and shape, as plain values."""
        height, width = self.pixels.shape[:2]
        return {"path": str(self.path), "sha256": self.sha256, "height": height, "width": width}
