"""How close a clip is to its true target. Frames are uint8, results are for values in 0..1."""

import math

import numpy as np

from sememe.errors import InputError
from sememe.video import Clip

PSNR_LIMIT = 100.0  # decibels; what equal clips get, so that means stay finite
_WINDOW = 7
_K1, _K2 = 0.01, 0.03


def psnr(clip: Clip, truth: Clip, *, skip_first: bool = True) -> float:
    """Peak signal-to-noise ratio in decibels over all pixels, at most `PSNR_LIMIT`.

    Args:
        clip: what was made.
        truth: what should have been made, of the same shape.
        skip_first: leave frame 0 out, which was given.

    Raises:
        InputError: if the shapes differ.
    """
    first, second = _pair(clip, truth, skip_first=skip_first)
    error = float(np.mean(np.square(first - second), dtype=np.float64))
    return PSNR_LIMIT if error == 0 else min(PSNR_LIMIT, -10 * math.log10(error))


def ssim(clip: Clip, truth: Clip, *, skip_first: bool = True) -> float:
    """Structural similarity (Wang et al. 2004), mean over frames, channels and windows of 7x7 pixels; 1 is equality.

    Local means, variances and covariances weigh all pixels of a window equally and are those of the population.

    Raises:
        InputError: if the shapes differ or a side is below 7 pixels.
    """
    first, second = _pair(clip, truth, skip_first=skip_first)
    if min(first.shape[1:3]) < _WINDOW:
        raise InputError(f"expected sides of at least {_WINDOW} pixels for ssim, got {first.shape[1]}x{first.shape[2]}")
    first, second = first.astype(np.float64), second.astype(np.float64)
    mean_1, mean_2 = _window_means(first), _window_means(second)
    variance_1 = _window_means(first * first) - mean_1 * mean_1
    variance_2 = _window_means(second * second) - mean_2 * mean_2
    covariance = _window_means(first * second) - mean_1 * mean_2
    c_1, c_2 = _K1**2, _K2**2
    luminance = (2 * mean_1 * mean_2 + c_1) / (mean_1**2 + mean_2**2 + c_1)
    structure = (2 * covariance + c_2) / (variance_1 + variance_2 + c_2)
    return float(np.mean(luminance * structure))


def _pair(clip: Clip, truth: Clip, *, skip_first: bool) -> tuple[np.ndarray, np.ndarray]:
    if clip.frames.shape != truth.frames.shape:
        raise InputError(f"expected clips of one shape, got {clip.frames.shape} and {truth.frames.shape}")
    start = 1 if skip_first and clip.num_frames > 1 else 0
    scale = np.float32(255)
    return clip.frames[start:].astype(np.float32) / scale, truth.frames[start:].astype(np.float32) / scale


def _window_means(values: np.ndarray) -> np.ndarray:
    """Means over all windows, by sums of running totals; (frame, height - 6, width - 6, channel)."""
    for axis in (1, 2):
        totals = np.cumsum(values, axis=axis)
        totals = np.concatenate([np.zeros_like(np.take(totals, [0], axis)), totals], axis=axis)
        length = totals.shape[axis]
        values = (
            np.take(totals, range(_WINDOW, length), axis) - np.take(totals, range(length - _WINDOW), axis)
        ) / _WINDOW
    return values
