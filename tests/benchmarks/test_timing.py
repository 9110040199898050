"""Turns, medians, ratios, and when an expectation holds."""

import pytest
import torch

from benchmarks.timing import Timing, expect_at_least, expect_within, time_in_turns

# The machine is half as fast in the second round, for everybody.
SHORT, LONG = Timing((1.0, 2.0, 1.0)), Timing((2.5, 5.0, 2.5))


def test_contestants_take_turns_and_the_first_call_is_left_out() -> None:
    order: list[str] = []
    timings = time_in_turns({name: lambda name=name: order.append(name) for name in "abc"}, num_rounds=2)  # type: ignore[misc]
    assert "".join(order) == "abc" * 3
    assert [len(timing.seconds) for timing in timings.values()] == [2, 2, 2]


def test_nothing_is_kept_for_gradients() -> None:
    seen: list[bool] = []
    time_in_turns({"one": lambda: seen.append(torch.is_grad_enabled())}, num_rounds=1)
    assert seen == [False, False]


def test_a_ratio_is_taken_within_rounds() -> None:
    assert LONG.ratio_to(SHORT) == 2.5
    assert LONG.ratio_range(SHORT) == (2.5, 2.5)
    assert SHORT.to_record()["median_seconds"] == 1.0


@pytest.mark.parametrize(("expected", "holds"), [(2.5, True), (2.39, True), (2.37, False), (2.64, False)])
def test_within_a_share(expected: float, holds: bool) -> None:
    assert expect_within("", expected, 0.05, LONG, SHORT).holds is holds


def test_at_least() -> None:
    assert expect_at_least("", 2.5, LONG, SHORT).holds
    assert not expect_at_least("", 2.6, LONG, SHORT).holds
