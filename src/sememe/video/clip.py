"""The record that everything speaks: frames and how fast they go; and how much of a file may become one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sememe.errors import InputError, VideoError


@dataclass(frozen=True)
class VideoLimits:
    """Bounds that a video or picture is held to, checked before a frame is made and again while decoding.

    The defaults let a minute of 4K at 60 frames a second pass and refuse small files that unfold to hundreds of
    gigabytes. Where a section of a video is read, it alone is held to them, with the frames that it cannot be decoded
    without.

    Attributes:
        max_pixels: Pixels of one frame of a video.
        max_frames: Frames in the file, whether they are kept or not.
        max_duration: Duration in seconds.
        max_total_pixels: Pixels of all frames in the file together.
        max_kept_bytes: Bytes of the RGB frames that are kept, after sampling and resizing.
        max_image_pixels: Pixels of a picture.
        min_image_side: Pixels; a picture with a shorter side is refused.

    Raises:
        InputError: A limit is not a positive number.
    """

    max_pixels: int = 4096 * 2304
    max_frames: int = 36_000
    max_duration: float = 600.0
    max_total_pixels: int = 40_000_000_000
    max_kept_bytes: int = 2 * 1024**3
    max_image_pixels: int = 52_000_000  # a photograph of 50 megapixels passes; scaled down it takes up to 0.7 GB
    min_image_side: int = 8

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"expected {field.name} above 0, got {value}")


Image = UInt8[np.ndarray, "height width 3"]
Frames = UInt8[np.ndarray, "num_frames height width 3"]


@dataclass(frozen=True, eq=False)
class Clip:
    """RGB frames at a constant rate.

    Attributes:
        frames: Uint8 array (frame, height, width, 3), sRGB, 0 to 255, square pixels, at least one frame.
        fps: Frames a second, above 0.

    Two clips are equal if their frames and rates are.

    Raises:
        VideoError: `frames` or `fps` is not as said above.
    """

    frames: np.ndarray  # checked below in every run, so that wrong arrays get a message for people
    fps: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "frames", _checked_frames(self.frames))
        object.__setattr__(self, "fps", _checked_fps(self.fps))

    @classmethod
    def from_image(cls, image: np.ndarray, fps: float = 8.0) -> "Clip":
        """A clip of one frame from a uint8 array (height, width, 3)."""
        array = np.asarray(image)
        if array.ndim != 3:
            raise VideoError(f"expected a picture of shape (height, width, 3), got an array of shape {array.shape}")
        return cls(array[None], fps)

    @classmethod
    def from_images(cls, images: Sequence[Any], fps: float) -> "Clip":
        """A clip of PIL images or uint8 arrays (height, width, 3) of one size, as diffusers' `load_video` returns them.

        Raises:
            VideoError: There are none, or they are of several sizes.
        """
        # What an image has beside its colours is dropped.
        frames = [np.asarray(image.convert("RGB") if hasattr(image, "convert") else image) for image in images]
        sizes = {frame.shape for frame in frames}
        if len(sizes) != 1:
            raise VideoError(f"expected pictures of one size, got {len(frames)} of {len(sizes)} sizes")
        return cls(np.stack(frames), fps)

    @property
    def num_frames(self) -> int:
        return self.frames.shape[0]

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.frames.shape[1]

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.frames.shape[2]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @property
    def duration(self) -> float:
        """Seconds, the time that the last frame is shown included."""
        return self.num_frames / self.fps

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Clip):
            return NotImplemented
        return self.fps == other.fps and np.array_equal(self.frames, other.frames)

    __hash__ = None  # type: ignore[assignment]  # equality is by content, and the content is a mutable array

    def __repr__(self) -> str:
        return f"Clip({self.num_frames} frames of {self.height}x{self.width} at {self.fps:g} fps)"


def _checked_frames(frames: object) -> np.ndarray:
    if not isinstance(frames, np.ndarray):
        raise VideoError(f"expected frames as a numpy array, got {type(frames).__name__}; convert with numpy.asarray")
    if frames.dtype != np.uint8:
        raise VideoError(f"expected frames of dtype uint8 (0 to 255), got {frames.dtype}; scale and convert first")
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise VideoError(f"expected frames of shape (frame, height, width, 3), got {frames.shape}")
    if 0 in frames.shape:
        raise VideoError(f"expected at least one frame of at least one pixel, got shape {frames.shape}")
    return np.ascontiguousarray(frames)


def _checked_fps(fps: object) -> float:
    if isinstance(fps, bool) or not isinstance(fps, (int, float, np.integer, np.floating)):
        raise VideoError(f"expected fps as a number, got {type(fps).__name__}")
    if not math.isfinite(fps) or fps <= 0:
        raise VideoError(f"expected fps above 0, got {fps}")
    return float(fps)
