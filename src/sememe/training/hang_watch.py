"""Ends a run whose processes have stopped progressing together, so that none waits forever."""

import os
import sys
import threading
import time

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from sememe.errors import SememeError

_PATIENCE = 45.0
"""Seconds that a step may take beyond twice the one before it."""
_LONG_PATIENCE = 600.0
"""Seconds that may go by between two steps, where checkpoints are written."""


class HangError(SememeError):
    """The processes of a run have stopped progressing together."""


class HangWatch:
    """Ends this process if its steps stop coming, because another process hangs or this one does.

    A timeout of the process group would do for gloo, whose calls return; a process that waits for a GPU does not come
    back to Python, and compiling takes longer than any step, in a first step that is not watched. The message goes to
    the standard error and, under torchrun, to the file from which it tells the cause of a failure.

    Args:
        rank: Number of the process.
        num_ranks: Number of processes; a single one is not watched.
    """

    def __init__(self, rank: int, num_ranks: int) -> None:
        self._rank, self._num_ranks = rank, num_ranks
        self._began: float | None = None
        self._last: float | None = None
        self._deadline: float | None = None
        self._step = 0
        self._is_over = threading.Event()

    def start(self) -> None:
        """Start watching, in a separate thread."""
        if self._num_ranks > 1:
            threading.Thread(target=self._watch, name="hang-watch", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._is_over.set()

    def begin_step(self, step: int) -> None:
        """Watch the step that all processes are about to take; the first one may take any time."""
        self._end_step()
        now = time.monotonic()
        self._step, self._began = step, now
        self._deadline = None if self._last is None else now + _PATIENCE + 2.0 * self._last

    def pause(self) -> None:
        """Allow more time before the next step."""
        self._end_step()
        self._deadline = time.monotonic() + _LONG_PATIENCE

    def _end_step(self) -> None:
        if self._began is not None:
            self._last, self._began = time.monotonic() - self._began, None

    def _watch(self) -> None:
        while not self._is_over.wait(1.0):
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                self._end()

    def _end(self) -> None:
        error = HangError(
            f"process {self._rank} of {self._num_ranks} has waited too long at step {self._step}, so a process hangs "
            "or is gone; start the run again to go on from its last checkpoint"
        )
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        get_error_handler().record_exception(error)
        # No cleanup: the main thread may be blocked forever.
        os._exit(1)
