"""How much a video changes in look from its beginning to its end, and whether it stays consistent.

The start-end contrast is that of FramePack (arXiv 2504.12626, equation 7), for a measure M that is named. It does not
see what happens between; the slope and the worst part stand beside it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sememe.video import Clip

_EDGE_SHARE = 0.15  # of the frames are the beginning and the end
_NUM_PARTS = 10

PerFrame = Float[np.ndarray, " frame"]


@dataclass(frozen=True, slots=True)
class Drift:
    """The change of a measure over a video, in per cent of its mean over all frames.

    Attributes:
        start_end: Difference between the first 15 % of the frames and the last 15 %, without sign.
        slope: Change from the first frame to the last by a line of least squares, with its sign.
        worst: Largest difference between the first 15 % of the frames and a tenth of the video, without sign.
    """

    start_end: float
    slope: float
    worst: float


def _measure_sharpness(frames: np.ndarray) -> PerFrame:
    grey = _brightness(frames)
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return np.abs(around - 4 * grey[:, 1:-1, 1:-1]).mean(axis=(1, 2))


def _brightness(frames: np.ndarray) -> np.ndarray:
    return frames @ np.array([0.299, 0.587, 0.114])


MEASURES: Mapping[str, Callable[[np.ndarray], PerFrame]] = {
    "contrast": lambda frames: _brightness(frames).std(axis=(1, 2)),
    "saturation": lambda frames: (frames.max(axis=-1).astype(np.float64) - frames.min(axis=-1)).mean(axis=(1, 2)),
    "sharpness": _measure_sharpness,
}
"""Measures of a frame: standard deviation of the brightness, mean spread of red, green and blue, and mean size of the
Laplacian of the brightness."""


def measure_drift(clip: Clip) -> dict[str, Drift]:
    """Return the drift of every measure."""
    return {name: find_drift(measure(clip.frames)) for name, measure in MEASURES.items()}


def find_drift(values: PerFrame) -> Drift:
    """Return the drift of a measure.

    Args:
        values: Value of each frame, at least one, 0 or more.
    """
    count = len(values)
    edge = max(1, round(_EDGE_SHARE * count))
    scale = 100 / max(float(values.mean()), 1e-9)
    start, stop = float(values[:edge].mean()), float(values[-edge:].mean())
    parts = [float(part.mean()) for part in np.array_split(values, min(_NUM_PARTS, count))]
    places = np.linspace(-0.5, 0.5, count) if count > 1 else np.zeros(1)
    slope = float(places @ values / max(float(places @ places), 1e-9))
    return Drift(
        start_end=round(scale * abs(start - stop), 4),
        slope=round(scale * slope, 4),
        worst=round(scale * max(abs(start - part) for part in parts), 4),
    )


def measure_consistency(features: Float[np.ndarray, "moment feature"]) -> float:
    """Return how much moments resemble the first one and the one before, as VBench does for subjects.

    That is the mean, over all moments but the first, of both cosines, none of them below 0. Values depend on the
    network that the features are of.

    Args:
        features: Features of unit length, of at least one moment; a single one is consistent.
    """
    if len(features) < 2:
        return 1.0
    first, before = features[1:] @ features[0], (features[1:] * features[:-1]).sum(axis=1)
    return float(np.mean((np.maximum(first, 0) + np.maximum(before, 0)) / 2))
