"""Seconds that the parts of a generation take."""

import time

import torch


class Stopwatch:
    """Seconds between laps, by name.

    Args:
        device: that computes. One that works on by itself after it was told what to do is waited for at each lap.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._start = self._now()

    def lap(self, name: str) -> None:
        """Ends a lap, which begins where the one before ended."""
        now = self._now()
        self.seconds[name] = now - self._start
        self._start = now

    def _now(self) -> float:
        if self._device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()
