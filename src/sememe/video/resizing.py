"""Which frames of a clip to take, and clips at another size or another rate."""

from typing import Literal, get_args

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from sememe.errors import InputError
from sememe.video.clip import Clip

Sampling = Literal["even", "fps", "first"]
"""Ways to take frames from a longer clip.

- `even`: spread over the whole clip, the first frame and the last included.
- `fps`: at a rate of so many frames a second, from the first frame on.
- `first`: the first frames as they come.
"""

Indices = Int[np.ndarray, " num_frames"]
Times = Float[np.ndarray, " num_source"]


def check_sampling(
    sampling: Sampling, num_frames: int | None, target_fps: float | None, *, rate_name: str = "target_fps"
) -> None:
    """Raise `InputError` unless the three settings fit together; `rate_name` is what the caller calls the rate."""
    if sampling not in get_args(Sampling):
        raise InputError(f"expected sampling to be one of {', '.join(get_args(Sampling))}, got {sampling!r}")
    if num_frames is not None and num_frames < 1:
        raise InputError(f"expected num_frames of at least 1, got {num_frames}")
    if target_fps is not None and not 0 < target_fps < np.inf:
        raise InputError(f"expected {rate_name} above 0, got {target_fps}")
    if sampling == "fps" and target_fps is None:
        raise InputError(f'sampling="fps" needs {rate_name}, the frames a second to take')
    if sampling != "fps" and target_fps is not None:
        raise InputError(f'{rate_name} has no effect with sampling="{sampling}"; use sampling="fps" or leave it out')


def pick_frames(
    num_source: int,
    num_frames: int | None = None,
    sampling: Sampling = "even",
    *,
    source_fps: float | None = None,
    target_fps: float | None = None,
) -> Indices:
    """Indices of the frames to take from a clip of constant rate, ascending, in 0 to `num_source` - 1.

    `even` spreads `num_frames` positions linearly from the first frame to the last and drops their fractions, as the
    released Video-As-Prompt code does. `fps` takes the frame that is shown at each multiple of 1 / `target_fps`
    seconds, up to the end of the clip if `num_frames` is None. A clip that is too short repeats frames: spread out for
    `even`, the last one otherwise.

    Args:
        num_source: Frames of the clip, at least 1.
        num_frames: Frames to take; may be None for `fps` only.
        sampling: See `Sampling`.
        source_fps: Frames a second of the clip; needed for `fps`.
        target_fps: Frames a second to take; needed for `fps`, an error otherwise.

    Raises:
        InputError: A count or rate is out of range, missing, or without effect.
    """
    check_sampling(sampling, num_frames, target_fps)
    if num_source < 1:
        raise InputError(f"expected a clip of at least 1 frame, got {num_source}")
    if sampling == "fps":
        if source_fps is None or not 0 < source_fps < np.inf:
            raise InputError(f'sampling="fps" needs the clip\'s own rate as source_fps above 0, got {source_fps}')
        assert target_fps is not None
        step = source_fps / target_fps
        count = num_frames or max(1, int(np.ceil(num_source / step - _ROUNDING)))
        positions = np.arange(count) * step + _ROUNDING
    elif num_frames is None:
        raise InputError(f'sampling="{sampling}" needs num_frames')
    elif sampling == "even":
        positions = np.linspace(0, num_source - 1, num_frames)
    else:
        positions = np.arange(num_frames, dtype=float)
    return np.minimum(positions, num_source - 1).astype(np.int64)


def pick_frames_at(
    times: Times, num_frames: int | None = None, sampling: Sampling = "even", *, target_fps: float | None = None
) -> Indices:
    """As `pick_frames`, for frames that are shown from the given times on (ascending seconds), at whatever rate.

    `even` and `fps` go by time, so that a stretch with few frames gets its share: of each moment, the frame shown then
    is taken. Where the times are those of a constant rate, give or take the rounding of containers, the answer is that
    of `pick_frames`.
    """
    check_sampling(sampling, num_frames, target_fps)
    if len(times) < 1:
        raise InputError("expected a clip of at least 1 frame, got 0")
    rate = mean_rate(times)
    if sampling == "first" or rate is None or is_constant(times):
        return pick_frames(len(times), num_frames, sampling, source_fps=rate or target_fps, target_fps=target_fps)
    if sampling == "even":
        if num_frames is None:
            raise InputError('sampling="even" needs num_frames')
        moments = np.linspace(times[0], times[-1], num_frames)
    else:
        assert target_fps is not None
        end = times[-1] + 1 / rate  # the last frame is taken to be shown for a mean interval
        count = num_frames or max(1, int(np.ceil((end - times[0]) * target_fps - _ROUNDING)))
        moments = times[0] + np.arange(count) / target_fps
    return np.maximum(np.searchsorted(times, moments + _ROUNDING, side="right") - 1, 0)


def mean_rate(times: Times) -> float | None:
    """Frames a second over all intervals; None for less than two frames or no time between them."""
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return float((len(times) - 1) / (times[-1] - times[0]))


def is_constant(times: Times) -> bool:
    """Do the times differ from those of a constant rate by no more than what rounding to milliseconds explains?"""
    rate = mean_rate(times)
    if rate is None:
        return True
    ideal = times[0] + np.arange(len(times)) / rate
    return bool(np.abs(times - ideal).max() <= max(_CONTAINER_ROUNDING, 0.01 / rate))


_ROUNDING = 1e-6  # of floating point, in frames or seconds
_CONTAINER_ROUNDING = 1.1e-3  # Matroska's clock ticks once a millisecond, and so do both ends of the mean rate


Fit = Literal["cover", "contain", "stretch"]
"""How a picture gets another shape.

- `cover`: fill the new frame, keep the proportions, crop what sticks out equally on both sides.
- `contain`: show all of it, keep the proportions, black bars.
- `stretch`: change the proportions.
"""


def resize_clip(clip: Clip, height: int, width: int, fit: Fit = "cover") -> Clip:
    """The clip at `height` x `width` pixels. Shrinking averages over areas, so that fine patterns do not flicker.

    Raises:
        InputError: A side is less than 1 pixel, or `fit` is unknown.
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
        InputError: A count or rate is out of range, missing, or without effect.
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
