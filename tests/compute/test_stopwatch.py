"""Laps, for which an accelerator is waited."""

import pytest
import torch

from sememe.compute.stopwatch import Stopwatch


def test_a_lap_waits_for_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 10.0}
    waited: list[torch.device] = []

    def finish(device: torch.device) -> None:
        waited.append(device)
        clock["now"] += 5.0

    monkeypatch.setattr("sememe.compute.stopwatch.time.perf_counter", lambda: clock["now"])
    monkeypatch.setattr(torch.accelerator, "synchronize", finish)
    watch = Stopwatch(torch.device("cuda", 0))
    clock["now"] += 1.0
    watch.lap("encode")
    assert watch.seconds == {"encode": 6.0}
    assert waited == [torch.device("cuda", 0)] * 2
    plain = Stopwatch(torch.device("cpu"))
    clock["now"] += 1.0
    plain.lap("encode")
    assert plain.seconds == {"encode": 1.0}
    assert len(waited) == 2


def test_laps_of_one_name_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 7.0, 8.0])
    monkeypatch.setattr("sememe.compute.stopwatch.time.perf_counter", lambda: next(clock))
    watch = Stopwatch()
    for name in ("read", "load", "read"):
        watch.lap(name)
    assert watch.seconds == {"read": 5.0, "load": 2.0}
    assert watch.total == 8.0
