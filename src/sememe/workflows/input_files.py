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
    """A video file, or a section of one, of which no frame has been decoded.

    Attributes:
        path: The file.
        sha256: Hash of the file.
        survey: Times and sizes in the section, read from its packets.
    """

    path: Path
    sha256: str
    survey: Survey

    @classmethod
    def survey_path(cls, path: Path, section: Mapping[str, Any], least_frames: int = 1) -> "VideoFile":
        """Survey a video file, or a section of one.

        Args:
            path: The file.
            section: `start`, `end` and `num_frames` for `survey_video`; empty for the whole file.
            least_frames: Frames that it has at least, 1 or 2.

        Raises:
            VideoError: It is missing, is no video, is damaged or cut short, is over the limits, or has fewer frames.
            InputError: The section ends before it begins.
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
    """A picture file.

    Attributes:
        path: The file.
        sha256: Hash of the file.
        pixels: Upright uint8 array (height, width, 3), with what was transparent on white.
    """

    path: Path
    sha256: str
    pixels: np.ndarray

    @classmethod
    def read(cls, path: Path, largest_side: int = 0) -> "ImageFile":
        """Read a picture file; one that is much larger than any model needs is scaled down.

        Args:
            path: The file.
            largest_side: Pixels of the larger side of the result, where that is known.

        Raises:
            VideoError: It is missing, is no picture, is damaged, or is over the limits.
        """
        pixels = read_image(path, enough=max(_ENOUGH, largest_side))  # first, to say what is wrong with a file
        return cls(path, hash_file(path), pixels)

    def to_document(self) -> dict[str, Any]:
        """Return path, hash and shape, as plain values."""
        height, width = self.pixels.shape[:2]
        return {"path": str(self.path), "sha256": self.sha256, "height": height, "width": width}
