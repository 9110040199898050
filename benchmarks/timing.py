"""Time, measured so that drift of the machine cancels: contestants take turns, and each first call is left out."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant in each round, in order; the rounds of all contestants are the same ones."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def ratio_to(self, other: "Timing") -> float:
        """How many times as long as another: the median over rounds, each of which sees the machine in one state."""
        return statistics.median(mine / its for mine, its in zip(self.seconds, other.seconds, strict=True))

    def ratio_range(self, other: "Timing") -> tuple[float, float]:
        """The lowest and the highest of the same over rounds."""
        ratios = [mine / its for mine, its in zip(self.seconds, other.seconds, strict=True)]
        return min(ratios), max(ratios)

    def to_record(self) -> dict[str, Any]:
        return {
            "median_seconds": self.median,
            "min_seconds": min(self.seconds),
            "max_seconds": max(self.seconds),
            "seconds": list(self.seconds),
        }


@dataclass(frozen=True)
class Expectation:
    """A ratio that should come out, and what came out.

    Attributes:
        what: in words.
        expected: the ratio.
        measured: the median over rounds.
        lowest: of the rounds.
        highest: of the rounds.
        holds: whether the median is as expected.
    """

    what: str
    expected: float
    measured: float
    lowest: float
    highest: float
    holds: bool

    def to_record(self) -> dict[str, Any]:
        return asdict(self)


def expect_within(what: str, expected: float, tolerance: float, longer: Timing, shorter: Timing) -> Expectation:
    """That one takes `expected` times as long as another, to within a share of it."""
    measured = longer.ratio_to(shorter)
    holds = abs(measured - expected) <= tolerance * expected
    return Expectation(what, expected, measured, *longer.ratio_range(shorter), holds)


def expect_at_least(what: str, expected: float, longer: Timing, shorter: Timing) -> Expectation:
    """That one takes at least `expected` times as long as another."""
    measured = longer.ratio_to(shorter)
    return Expectation(what, expected, measured, *longer.ratio_range(shorter), measured >= expected)


def time_in_turns(
    calls: Mapping[str, Callable[[], Any]], num_rounds: int, device: str = "cpu", *, num_warmups: int = 1
) -> dict[str, Timing]:
    """Calls A, B, C, A, B, C, ... without gradients, and times each call of the rounds behind the warm-ups."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for index in range(num_warmups + num_rounds):
            for name, call in calls.items():
                seconds = time_once(call, device)
                if index >= num_warmups:
                    taken[name].append(seconds)
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}


def time_once(call: Callable[[], Any], device: str = "cpu") -> float:
    """Seconds of one call, until the device has done it."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    """Until a device that computes on its own time has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
