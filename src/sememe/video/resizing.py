"""Clips at another size or another rate."""

from typing import Literal, get_args

import cv2
import numpy as np
from jaxtyping import UInt8

from sememe.errors import InputError
from sememe.video.clip import Clip
from sememe.video.sampling import Sampling, pick_frames

Fit = Literal["cover", "contain", "stretch"]
"""How a picture gets another shape.

- `cover`: fill the new frame, keep the proportions, crop what sticks out equally on both sides.
- `contain`: show all of it, keep the proportions, black bars.
- `stretch`: change the proportions.
"""


def resize_clip(clip: Clip, height: int, width: int, fit: Fit = "cover") -> Clip:
    """The clip at `height` x `width` pixels. Shrinking averages over areas, so that fine patterns do not flicker.

    Raises:
        InputError: a side is less than 1 pixel, or `fit` is unknown.
    """
    check_size(height, width)
    if fit not in get_args(Fit):
        raise InputError(f"expected fit to be one of {', '.join(get_args(Fit))}, got {fit!r}")
    if clip.size == (height, width):
        return clip
    return Clip(np.stack([resize_image(frame, height, width, fit) for frame in clip.frames]), clip.fps)


def resample_clip(
    clip: Clip, num_frames: int | None = None, sampling: Sampling = "even", fps: float | None = None
) -> Clip:
    """The clip with other frames: see `pick_frames`. A clip that is too short repeats frames.

    The new rate is `fps` where that is given, the old one for `first`, and for `even` what lets the clip last as long
    as before, from its first frame to its last.

    Raises:
        InputError: a count or rate is out of range, missing, or without effect.
    """
    picks = pick_frames(clip.num_frames, num_frames, sampling, source_fps=clip.fps, target_fps=fps)
    if np.array_equal(picks, np.arange(clip.num_frames)) and fps in (None, clip.fps):
        return clip
    return Clip(clip.frames[picks], resampled_rate(sampling, len(picks), clip.num_frames, clip.fps, fps))


def resampled_rate(
    sampling: Sampling, num_frames: int, num_source: int, source_fps: float, target_fps: float | None
) -> float:
    """Frames a second of what `pick_frames` took."""
    if target_fps is not None:
        return target_fps
    if sampling == "first" or num_source < 2 or num_frames < 2:
        return source_fps
    return source_fps * (num_frames - 1) / (num_source - 1)


def resize_image(
    image: UInt8[np.ndarray, "old_height old_width 3"],
    height: int,
    width: int,
    fit: Fit = "cover",
    pixel_aspect: float = 1.0,
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """One picture (height, width, 3) at another size.

    `pixel_aspect` is the width of a pixel of `image` over its height; pixels of the result are square.
    """
    old_height, old_width = image.shape[:2]
    if fit == "cover":
        scale = min(old_width * pixel_aspect / width, old_height / height)
        image = _crop(image, round(scale * height), round(scale * width / pixel_aspect))
    elif fit == "contain":
        scale = max(old_width * pixel_aspect / width, old_height / height)
        inner_height = min(height, max(1, round(old_height / scale)))
        inner_width = min(width, max(1, round(old_width * pixel_aspect / scale)))
        canvas = np.zeros((height, width, 3), np.uint8)
        top, left = (height - inner_height) // 2, (width - inner_width) // 2
        canvas[top : top + inner_height, left : left + inner_width] = _scale(image, inner_height, inner_width)
        return canvas
    return _scale(image, height, width)


def check_size(height: int, width: int) -> None:
    """Raise `InputError` unless both sides are at least one pixel."""
    if height < 1 or width < 1:
        raise InputError(f"expected height and width of at least 1 pixel, got {height}x{width}")


def _crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    height, width = min(max(height, 1), image.shape[0]), min(max(width, 1), image.shape[1])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _scale(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Shrink first, by areas, then enlarge: OpenCV averages only if neither side grows."""
    shrunk = (min(height, image.shape[0]), min(width, image.shape[1]))
    if shrunk != image.shape[:2]:
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
    if (height, width) != image.shape[:2]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(image)
