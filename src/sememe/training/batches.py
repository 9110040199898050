"""The batches of a run in order, made ahead in threads on request."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from sememe.training.seeds import step_generator
from sememe.training.stage import Stage


class BatchSource:
    """Gives batch after batch of a stage. Batches are pure functions of their number, so order of making is free."""

    def __init__(
        self, stage: Stage, *, seed: int, rank: int, device: torch.device, start: int, stop: int, num_ahead: int
    ) -> None:
        self._stage, self._seed, self._rank, self._device = stage, seed, rank, device
        self._next, self._stop, self._num_ahead = start, stop, num_ahead
        self._pool = ThreadPoolExecutor(num_ahead, thread_name_prefix="batch") if num_ahead else None
        self._ahead: dict[int, Future[Any]] = {}

    def take(self) -> Any:
        """The next batch, from `start` up to `stop`."""
        index = self._next
        assert index < self._stop, f"batch {index} was asked for, but the run has only {self._stop}"
        self._next += 1
        if self._pool is None:
            return self._make(index)
        for number in range(index, min(index + self._num_ahead + 1, self._stop)):
            if number not in self._ahead:
                self._ahead[number] = self._pool.submit(self._make, number)
        return self._ahead.pop(index).result()

    def close(self) -> None:
        """Stop making batches."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    @torch.no_grad()
    def _make(self, index: int) -> Any:
        generator = step_generator(self._seed, index, self._rank, "batch")
        return self._stage.batch(index, generator, self._device)
