import time

import pytest

from sememe import events


def test_the_first_step_does_not_count_for_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 11.0, 12.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    told: list[events.Progress] = []
    counter = events.StepCounter("generating", 3, told.append)
    for _ in range(3):
        counter.advance()
    assert [progress.seconds_left for progress in told] == [None, 20.0, 1.0, 0.0]
