"""The files that a generation reads: looked over before the slow part, decoded at the size that the model needs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sememe.errors import VideoError
from sememe.files import hash_file
from sememe.video import Clip, Sampling, VideoLimits, read_clip, read_image
from sememe.video.source import open_source


@dataclass(frozen=True)
class ReferenceFile:
    """A video that may serve as a reference; no frame of it has been decoded.

    Attributes:
        path: as it was given.
        sha256: of the file.
        num_frames: in the file, at least 2.
        height: pixels, as stored (a rotation of the file not applied).
        width: pixels, the same.
        fps: frames a second, the mean.
    """

    path: Path
    sha256: str
    num_frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class ImageFile:
    """A picture file.

    Attributes:
        path: as it was given.
        sha256: of the file.
        pixels: uint8 array (height, width, 3), upright, what was transparent on white.
    """

    path: Path
    sha256: str
    pixels: np.ndarray


def survey_reference(path: Path) -> ReferenceFile:
    """Looks a reference over without decoding it.

    Raises:
        VideoError: it is missing, is no video, is damaged or cut short, is not within the limits, or is a still.
    """
    with open_source(path, VideoLimits()) as source:
        num_frames, fps = len(source.survey.times), source.survey.fps
        height, width = source.height, source.width
    if num_frames < 2:
        raise VideoError(
            f"expected a reference of at least 2 frames, but {path} has {num_frames}: a still shows no motion to copy"
        )
    return ReferenceFile(path, hash_file(path), num_frames, height, width, fps)


def read_reference(
    reference: ReferenceFile, num_frames: int, size: tuple[int, int] | None, sampling: Sampling, fps: float
) -> Clip:
    """Decodes just what a model reads of a reference; `fps` counts for the sampling of that name.

    `size` is (height, width) to cover and crop, None for the file's own.

    Raises:
        VideoError: it cannot be decoded.
        InputError: it cannot be had in that size.
    """
    rate = fps if sampling == "fps" else None
    return read_clip(reference.path, num_frames=num_frames, sampling=sampling, fps=rate, size=size)


def read_picture(path: Path) -> ImageFile:
    """Reads the picture that a generation starts from.

    Raises:
        VideoError: it is missing, is no picture, is damaged, or is not within the limits.
    """
    pixels = read_image(path)
    return ImageFile(path, hash_file(path), pixels)
