import time

import pytest

from sememe.workflows import events


def test_the_first_step_does_not_count_for_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 11.0, 12.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    told: list[events.Progress] = []
    counter = events.StepCounter("generating", 3, told.append)
    for _ in range(3):
        counter.advance()
    assert [progress.seconds_left for progress in told] == [None, 20.0, 1.0, 0.0]


def test_laps_of_one_name_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 7.0, 8.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = events.Stopwatch()
    for name in ("read", "load", "read"):
        watch.lap(name)
    assert watch.seconds == {"read": 5.0, "load": 2.0}
    assert watch.total == 8.0
