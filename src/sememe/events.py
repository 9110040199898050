"""Progress events of a running command."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        stage: What is being done, a few words for people.
        step: Steps done of this stage.
        num_steps: Steps of this stage; 0 where it has none.
        seconds_left: Estimate for this stage; None before there is one.
        stays: Whether people should be able to read it later, too.
        figures: What was measured at this step, to be shown behind the stage.
    """

    stage: str
    step: int = 0
    num_steps: int = 0
    seconds_left: float | None = None
    stays: bool = False
    figures: str = ""

    @property
    def description(self) -> str:
        """The stage and its figures."""
        return f"{self.stage}, {self.figures}" if self.figures else self.stage


ProgressHandler = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """Do nothing."""


def tell_duration(seconds: float) -> str:
    """Return a duration in words, in the largest unit of which there are two."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} seconds"


class StepCounter:
    """Reports the steps of one stage, with the time left.

    The first step is left out of the estimate where there are others: it often pays for things that happen once.
    """

    def __init__(self, stage: str, num_steps: int, handler: ProgressHandler) -> None:
        self._stage, self._num_steps, self._handler = stage, num_steps, handler
        self._begin = self._first = time.monotonic()
        self._step = 0
        handler(Progress(stage, 0, num_steps))

    def advance(self) -> None:
        """One more step is done."""
        now = time.monotonic()
        self._step += 1
        if self._step == 1:
            self._first = now
            mean = now - self._begin
        else:
            mean = (now - self._first) / (self._step - 1)
        self._num_steps = max(self._num_steps, self._step)  # some schedulers take more steps than they are asked for
        left = self._num_steps - self._step
        self._handler(Progress(self._stage, self._step, self._num_steps, mean * left))
