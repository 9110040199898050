"""Figures with intervals (of 95 % unless said otherwise), and records as Markdown tables and as JSON."""

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from sememe.errors import InputError

_CONFIDENCE, _NUM_DRAWS = 0.95, 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its interval, from `count` values."""

    value: float
    low: float
    high: float
    count: int


def wilson_interval(successes: int, count: int, confidence: float = 0.95) -> Estimate:
    """Return a proportion with Wilson's score interval (1927), which stays within 0..1 and holds for few trials.

    Raises:
        InputError: If there are no trials, or more successes than trials.
    """
    if not 0 <= successes <= count or count == 0:
        raise InputError(f"expected 0 <= successes <= count and count above 0, got {successes} and {count}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Estimate(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)), count)


def bootstrap_interval(
    values: Sequence[float] | Sequence[Sequence[float]],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Estimate:
    """Return a mean, or a function of several means, with the percentile interval of a bootstrap over groups.

    Values of one group (such as all generations of one scene) depend on each other; whole groups are drawn.

    Args:
        values: One number per trial, or a row of numbers for `statistic`.
        groups: The group of each value; None draws single values.
        seed: Seed of the draws.
        statistic: Maps the means of the columns, (..., num_columns), to the figure, (...).

    Raises:
        InputError: If there are no values, or not one group for each.
    """
    # By hand: scipy's bootstrap draws single values, not groups, and would be a dependency for this alone.
    if not values:
        raise InputError("expected at least one value, got none")
    if groups is not None and len(groups) != len(values):
        raise InputError(f"expected one group per value, got {len(groups)} for {len(values)}")
    data = np.asarray(values, np.float64).reshape(len(values), -1)  # (trial, column)
    places: dict[Hashable, int] = {}
    members = [places.setdefault(key, len(places)) for key in (range(len(values)) if groups is None else groups)]
    counts = np.bincount(members)
    sums = np.zeros((len(counts), data.shape[1]))
    np.add.at(sums, members, data)
    draws = np.random.Generator(np.random.PCG64(seed)).integers(len(counts), size=(_NUM_DRAWS, len(counts)))
    means = np.concatenate([data.mean(axis=0)[None], sums[draws].sum(axis=1) / counts[draws].sum(axis=1)[:, None]])
    value, *results = means[:, 0] if statistic is None else statistic(means)
    low, high = np.quantile(results, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Estimate(float(value), float(low), float(high), len(data))


def to_markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return a Markdown table; figures are aligned right, a missing cell is a dash.

    Args:
        rows: One mapping per line, from column to value.
        columns: Columns in their order; None for all in the order of their first appearance.

    Raises:
        InputError: If there are no columns.
    """
    names = list(columns) if columns is not None else list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise InputError("expected at least one column for a table, got none")
    cells = [[format_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(3, len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    numeric = [any(_is_number(row.get(name)) for row in rows) for name in names]
    rule = [("-" * (width - 1) + ":") if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    padded = [
        [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, numeric, strict=True)
        ]
        for line in (names, rule, *cells)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def to_json(records: Any) -> str:
    """Return plain values as indented JSON, with keys in the order given. Raises `ValueError` for NaN and infinity."""
    return json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def format_share(estimate: Estimate) -> str:
    """Return a proportion in per cent: "85.0 % (79.4–89.3)"."""
    return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


def format_mean(estimate: Estimate, unit: str = "", digits: int = 1) -> str:
    """Return a mean with its interval: "21.3 dB (20.9–21.7)"."""
    value, low, high = (f"{number:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value}{f' {unit}' if unit else ''} ({low}–{high})"


def format_cell(value: Any) -> str:
    """Return a value as text for a table; a vertical bar is escaped."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Estimate)) and not isinstance(value, bool)
