"""Seconds that the parts of a run take. Imports no torch before a device is given."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Stopwatch:
    """Seconds between laps, by name; laps of one name add up.

    Args:
        device: Device to synchronise at each lap; None for work on the CPU.
    """

    def __init__(self, device: "torch.device | None" = None) -> None:
        self.seconds: dict[str, float] = {}
        self._device = None if device is None or device.type in ("cpu", "meta") else device
        self._begin = self._last = self._now()

    def lap(self, name: str) -> None:
        """End a lap and begin the next."""
        now = self._now()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def replace_lap(self, laps: Mapping[str, float]) -> None:
        """End a lap whose parts were measured elsewhere: their seconds by name, which replace earlier ones."""
        self.seconds |= laps
        self._last = self._now()

    @property
    def total(self) -> float:
        """Seconds since the watch was started."""
        return self._now() - self._begin

    def _now(self) -> float:
        if self._device is not None:
            import torch

            torch.accelerator.synchronize(self._device)
        return time.perf_counter()
