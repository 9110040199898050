"""Figures with intervals. All intervals are for a confidence of 95 % unless said otherwise."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from sememe.errors import InputError


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its interval, from `count` values."""

    value: float
    low: float
    high: float
    count: int


def wilson_interval(successes: int, count: int, confidence: float = 0.95) -> Estimate:
    """A proportion with Wilson's score interval (1927), which stays within 0..1 and holds for few trials.

    Raises:
        InputError: if there are no trials, or more successes than trials.
    """
    if not 0 <= successes <= count or count == 0:
        raise InputError(f"expected 0 <= successes <= count and count above 0, got {successes} and {count}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Estimate(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)), count)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """A mean with the interval of the normal approximation.

    Raises:
        InputError: if there are no values.
    """
    if not values:
        raise InputError("expected at least one value, got none")
    data = np.asarray(values, np.float64)
    error = float(data.std(ddof=1)) / math.sqrt(len(data)) if len(data) > 1 else 0.0
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    mean = float(data.mean())
    return Estimate(mean, mean - half, mean + half, len(data))


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    num_draws: int = 2000,
    seed: int = 0,
    statistic: Callable[[np.ndarray], float] | None = None,
) -> Estimate:
    """A mean with the percentile interval of a bootstrap over groups.

    Values of one group (such as all generations of one scene) depend on each other; whole groups are drawn.

    Args:
        values: one per trial.
        groups: the group of each value; None draws single values.
        confidence: of the interval.
        num_draws: resamples.
        seed: of the draws.
        statistic: of the values instead of their mean.

    Raises:
        InputError: if there are no values, or not one group for each.
    """
    if not values:
        raise InputError("expected at least one value, got none")
    if groups is not None and len(groups) != len(values):
        raise InputError(f"expected one group per value, got {len(groups)} for {len(values)}")
    data = np.asarray(values, np.float64)
    keys: Sequence[Hashable] = range(len(values)) if groups is None else groups
    members: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    parts = [data[indices] for indices in members.values()]
    rng = np.random.Generator(np.random.PCG64(seed))
    draws = rng.integers(len(parts), size=(num_draws, len(parts)))
    if statistic is None:
        sums, counts = np.array([part.sum() for part in parts]), np.array([len(part) for part in parts])
        results = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
        value = float(data.mean())
    else:
        results = np.array([statistic(np.concatenate([parts[index] for index in draw])) for draw in draws])
        value = statistic(data)
    low, high = np.quantile(results, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high), len(data))
