"""Tables as people and programs read them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sememe.errors import InputError
from sememe.evaluation.statistics import (
    Estimate,
    bootstrap_interval,
    format_mean,
    format_share,
    to_json,
    to_markdown,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (170, 200, 0.7939, 0.8929)],
)
def test_wilson_interval_of_textbook_cases(successes: int, count: int, low: float, high: float) -> None:
    estimate = wilson_interval(successes, count)
    assert (estimate.value, estimate.count) == (successes / count, count)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-3)


@given(st.integers(1, 500).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_interval_holds_its_value(case: tuple[int, int]) -> None:
    estimate = wilson_interval(*case)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_bootstrap_agrees_with_the_normal_interval_where_values_are_independent() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    half = 1.959964 * values.std(ddof=1) / 20
    drawn = bootstrap_interval(values.tolist())
    assert (drawn.value, drawn.low, drawn.high) == pytest.approx(
        (values.mean(), values.mean() - half, values.mean() + half), abs=0.05
    )


def test_bootstrap_of_a_ratio_of_means() -> None:
    """Both columns are drawn together: where one is twice the other, so is every resample."""
    rows = [(2 * value, value) for value in (1.0, 5.0, 3.0)]
    estimate = bootstrap_interval(rows, statistic=lambda means: means[..., 0] / means[..., 1])
    assert (estimate.value, estimate.low, estimate.high, estimate.count) == (2, 2, 2, 3)


def test_bootstrap_over_groups_is_wider_where_a_group_agrees_with_itself() -> None:
    values = [float(group % 2) for group in range(20) for _ in range(10)]
    groups = [group for group in range(20) for _ in range(10)]
    single, grouped = bootstrap_interval(values), bootstrap_interval(values, groups)
    assert grouped.value == single.value == 0.5
    assert grouped.high - grouped.low > 2 * (single.high - single.low)


def test_bootstrap_is_repeatable() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)


def test_wrong_input() -> None:
    for successes, count in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(InputError, match="successes"):
            wilson_interval(successes, count)
    with pytest.raises(InputError, match="at least one value"):
        bootstrap_interval([])
    with pytest.raises(InputError, match="one group per value"):
        bootstrap_interval([1.0, 2.0], ["a"])


def test_markdown() -> None:
    table = to_markdown([{"row": "seen", "n": 200}, {"row": "a|b", "share": 0.123456}])
    assert table.splitlines() == [
        "| row  |   n |  share |",
        "| ---- | --: | -----: |",
        "| seen | 200 |      – |",
        "| a\\|b |   – | 0.1235 |",
    ]
    assert to_markdown([{"row": "seen", "n": 200}], ["n"]).splitlines()[2] == "| 200 |"


def test_markdown_needs_columns() -> None:
    with pytest.raises(InputError, match="at least one column"):
        to_markdown([])


def test_json() -> None:
    assert json.loads(to_json({"b": 1, "a": "é"})) == {"b": 1, "a": "é"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"a": float("nan")})


def test_figures() -> None:
    assert format_share(Estimate(0.85, 0.794, 0.8929, 200)) == "85.0 % (79.4–89.3)"
    assert format_mean(Estimate(21.34, 20.9, 21.7, 200), "dB") == "21.3 dB (20.9–21.7)"
