"""How close a clip is to its true target, and which traces of the latent grid it shows.

Frames are uint8, PSNR and SSIM are for values in 0..1. Traces are tiles in space, seams in time, and flicker, all
relative to the true renders of the same cases, so that 1.0 means no worse than the truth. Seams between latent frames
are a part of flicker; flicker as such also rises with noise that changes in every frame, and falls below 1.0 where
motion is smoothed away."""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from sememe.backbones.autoencoder import LatentGrid
from sememe.errors import InputError
from sememe.evaluation.statistics import Estimate, bootstrap_interval
from sememe.video import Clip

_LEAST = 1e-6  # levels; keeps ratios finite where nothing differs, far below what a clip of bytes can show


@dataclass(frozen=True, slots=True)
class GridDifferences:
    """Mean absolute differences within a clip, in levels of 0 to 255; 0 where there is no such pair.

    Attributes:
        across_tiles: Difference between neighbouring pixels on either side of a line of the latent grid.
        within_tiles: Difference between all other neighbouring pixels.
        across_latent_frames: Difference between the last frame of a latent frame and the first of the next.
        within_latent_frames: Difference between all other successive frames.
        second: Second differences in time, of three successive frames.
    """

    across_tiles: float
    within_tiles: float
    across_latent_frames: float
    within_latent_frames: float
    second: float


@dataclass(frozen=True, slots=True)
class GridTraces:
    """How much more of the latent grid clips show than true renders do; 1.0 is none.

    Attributes:
        tiles: Differences across the lines of the grid over those elsewhere.
        seams: The same ratio in time, between latent frames.
        flicker: Second differences in time.
    """

    tiles: Estimate
    seams: Estimate
    flicker: Estimate


def measure_grid(clip: Clip, grid: LatentGrid) -> GridDifferences:
    """Measure neighbouring pixels (in all frames but the first, which was given) and successive frames."""
    frames = clip.frames.astype(np.float32)
    rows, columns = (np.abs(np.diff(frames[1:], axis=axis)) for axis in (1, 2))
    steps = np.diff(frames, axis=0)
    # Pair i lies between pixels i and i + 1; frame 0 has a latent frame of its own, so a new one begins at frame 1.
    on_row, on_column = (np.arange(1, side) % grid.spatial_ratio == 0 for side in (clip.height, clip.width))
    on_frame = np.arange(clip.num_frames - 1) % grid.temporal_ratio == 0
    return GridDifferences(
        _mean(rows[:, on_row], columns[:, :, on_column]),
        _mean(rows[:, ~on_row], columns[:, :, ~on_column]),
        _mean(np.abs(steps[on_frame])),
        _mean(np.abs(steps[~on_frame])),
        _mean(np.abs(np.diff(steps, axis=0))),
    )


def compare_grids(
    made: Sequence[GridDifferences], true: Sequence[GridDifferences], scenes: Sequence[int]
) -> GridTraces:
    """Return the traces in several clips together, with intervals over scenes.

    Differences are averaged over the clips before they are divided: a single clip with hardly any difference would
    otherwise decide the mean.

    Args:
        made: Measures of each generated clip.
        true: The same of its true render.
        scenes: Scene of each clip.
    """
    values = [[*astuple(one), *astuple(other)] for one, other in zip(made, true, strict=True)]
    count = len(GridDifferences.__slots__)

    def estimate(statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        def relative(means: np.ndarray) -> np.ndarray:
            means = np.maximum(means, _LEAST)
            return statistic(means[..., :count] / means[..., count:])

        return bootstrap_interval(values, scenes, statistic=relative)

    return GridTraces(
        tiles=estimate(lambda ratios: ratios[..., 0] / ratios[..., 1]),
        seams=estimate(lambda ratios: ratios[..., 2] / ratios[..., 3]),
        flicker=estimate(lambda ratios: ratios[..., 4]),
    )


def _mean(*parts: np.ndarray) -> float:
    count = sum(part.size for part in parts)
    return round(sum(float(part.sum(dtype=np.float64)) for part in parts) / count, 5) if count else 0.0


PSNR_LIMIT = 100.0  # decibels; what equal clips get, so that means stay finite
_WINDOW = 7
_K1, _K2 = 0.01, 0.03


def psnr(clip: Clip, truth: Clip, *, skip_first: bool = True) -> float:
    """Return the peak signal-to-noise ratio in decibels over all pixels, at most `PSNR_LIMIT`.

    Args:
        clip: Clip that was made.
        truth: Clip that should have been made, of the same shape.
        skip_first: Whether to leave frame 0 out, which was given.

    Raises:
        InputError: If the shapes differ.
    """
    first, second = _pair(clip, truth, skip_first=skip_first)
    error = float(np.mean(np.square(first - second), dtype=np.float64))
    return PSNR_LIMIT if error == 0 else min(PSNR_LIMIT, -10 * math.log10(error))


def ssim(clip: Clip, truth: Clip) -> float:
    """Return the structural similarity (Wang et al. 2004): mean over frames, channels, 7x7-pixel windows; at most 1.

    Local means, variances and covariances weigh all pixels of a window equally and are those of the population.

    Raises:
        InputError: If the shapes differ or a side is below 7 pixels.
    """
    first, second = _pair(clip, truth, skip_first=True)
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
    """Return means over all windows, by sums of running totals; (frame, height - 6, width - 6, channel)."""
    for axis in (1, 2):
        totals = np.cumsum(values, axis=axis)
        totals = np.concatenate([np.zeros_like(np.take(totals, [0], axis)), totals], axis=axis)
        length = totals.shape[axis]
        values = (
            np.take(totals, range(_WINDOW, length), axis) - np.take(totals, range(length - _WINDOW), axis)
        ) / _WINDOW
    return values
