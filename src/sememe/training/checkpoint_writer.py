"""Writing checkpoints in a thread while the run continues; each process writes its part."""

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from sememe.checkpoints.tensor_files import save_tensors
from sememe.errors import ModelError, OutputError
from sememe.files import atomic_folder, flush, hash_file, writing
from sememe.training.checkpoint import (
    AVERAGE,
    MANIFEST_NAME,
    OPTIMIZER,
    STATE_NAME,
    WEIGHTS,
    Checkpoint,
    Resume,
    count_steps,
    find_own,
    list_checkpoints,
    name_checkpoint,
    name_file,
)
from sememe.training.process import Distribution
from sememe.training.sharding import is_sharded, take_rows

# Leftovers of processes killed while writing a checkpoint; see `atomic_folder`.
_LEFTOVERS = (".step_*.parts", ".step_*.writing-*", ".step_*.replaced*")


class CheckpointWriter:
    """Writes one checkpoint at a time.

    All processes of a run begin a checkpoint; each copies what it has to write and continues. Once all have written
    their files, they complete it together: the main process gives the folder its name.

    Args:
        folder: Folder of the checkpoints.
        distribution: The processes.
        num_parts: Number of processes that hold one copy of the weights together.
        keep: Number of checkpoints that are kept, at least 2.
    """

    def __init__(self, folder: Path, distribution: Distribution, num_parts: int = 1, keep: int = 2) -> None:
        assert keep >= 2, "a run keeps two checkpoints at least, so that a damaged one is no loss"
        self._folder, self._distribution, self._num_parts, self._keep = folder, distribution, num_parts, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[dict[str, Any]] | None = None
        self._step = 0
        self._best: int | None = None

    @property
    def is_pending(self) -> bool:
        """Whether a checkpoint has begun and is not complete."""
        return self._written is not None

    @property
    def is_busy(self) -> bool:
        """Whether this process still writes."""
        return self._written is not None and not self._written.done()

    def begin(self, checkpoint: Checkpoint, best: int | None = None) -> None:
        """Copy this process's part of a checkpoint to the CPU, and write it in a thread.

        Args:
            checkpoint: Checkpoint.
            best: Step of another one to keep, however old it is.
        """
        assert not self.is_pending, "the last checkpoint is not complete"
        self._step, self._best, rank = checkpoint.step, best, self._distribution.rank
        named = {WEIGHTS: checkpoint.weights, OPTIMIZER: checkpoint.optimizer}
        if checkpoint.average is not None:
            named[AVERAGE] = checkpoint.average
        is_main = self._distribution.is_main
        # The first processes together hold a complete copy; the others hold the same.
        files = {
            name_file(stem, rank, self._num_parts): _copy(tensors, is_main=is_main)
            for stem, tensors in named.items()
            if rank < self._num_parts
        }
        state = {"step": checkpoint.step, **checkpoint.state} if is_main else None
        self._written = self._pool.submit(_write, self._name_parts(), files, state)

    def complete(self) -> Path:
        """Wait until all processes have written their parts, and make these a checkpoint; return its path.

        All processes must call it. The oldest checkpoints are removed.

        Raises:
            OutputError: It cannot be written; then it is removed and older ones stay.
        """
        assert self._written is not None, "no checkpoint is begun"
        error = self._written.exception()
        files = {} if error is not None else self._written.result()
        self._written = None
        (num_failed,) = self._distribution.reduce([float(error is not None)], dist.ReduceOp.SUM)
        if num_failed:
            shutil.rmtree(self._name_parts(), ignore_errors=True)
            raise error or OutputError(
                f"another process could not write its part of the checkpoint {self._name_parts()}; see what it said"
            )
        texts = self._distribution.gather_texts(json.dumps(files))
        final = name_checkpoint(self._folder, self._step)
        if self._distribution.is_main:
            self._put_together(final, {name: file for text in texts for name, file in json.loads(text).items()})
        return final

    def close(self) -> None:
        """Wait for the thread."""
        self._pool.shutdown(wait=True)

    def _name_parts(self) -> Path:
        return self._folder / f".{name_checkpoint(self._folder, self._step).name}.parts"

    def _put_together(self, final: Path, files: Mapping[str, Any]) -> None:
        parts = self._name_parts()
        try:
            with atomic_folder(final) as temporary:
                for name in files:
                    (parts / name).rename(temporary / name)
                _save_json({"format": 1, "files": files}, temporary / MANIFEST_NAME)
        finally:
            shutil.rmtree(parts, ignore_errors=True)
        for path in list_checkpoints(self._folder)[: -self._keep]:
            if count_steps(path) == self._best:
                continue
            # An incomplete checkpoint must not look like a complete one.
            with suppress(OSError):
                shutil.rmtree(path.rename(path.with_name(f".{path.name}.replaced")))


def choose_checkpoint(run: Path, resume: Resume, distribution: Distribution) -> Path | None:
    """Return the checkpoint that all processes of a run resume from; None for a new run.

    The main process chooses. Leftovers of killed processes are removed.

    Raises:
        RecipeError: The run has checkpoints, but is not to be resumed.
        ModelError: None of its checkpoints is undamaged, or this process does not see the one that was chosen.
    """
    latest = None
    if distribution.is_main:
        remove_leftovers(run / "checkpoints")
        latest = find_own(run, resume)
    (step,) = distribution.share([-1 if latest is None else count_steps(latest)])
    if distribution.is_main or step < 0:
        return latest
    path = name_checkpoint(run / "checkpoints", int(step))
    if not path.is_dir():
        raise ModelError(
            f"expected the folder {path} of the main process, process {distribution.rank} does not see it; "
            "put the run on a file system that all processes share"
        )
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove leftovers of killed processes from a folder of checkpoints, before any process writes there."""
    for path in (path for pattern in _LEFTOVERS for path in folder.glob(pattern)):
        shutil.rmtree(path, ignore_errors=True)


def _copy(tensors: Mapping[str, Tensor], *, is_main: bool) -> dict[str, Tensor]:
    """Copies of the rows that this process holds. The main process writes what all of them hold."""
    own = {name: take_rows(each.detach()) for name, each in tensors.items() if is_main or is_sharded(each)}
    return {name: each.to("cpu", copy=True) for name, each in own.items() if is_main or each.numel()}


def _write(folder: Path, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any] | None) -> dict[str, Any]:
    """Write tensors by file, and the state in the main process; return size and SHA-256 of each file."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, tensors in files.items():
            save_tensors(tensors, folder / name)
        paths = [folder / name for name in files]
        if state is not None:
            paths.append(folder / STATE_NAME)
            _save_json(state, paths[-1])
        for path in paths:
            flush(path)
        return {path.name: {"size": path.stat().st_size, "sha256": hash_file(path)} for path in paths}


def _save_json(value: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
