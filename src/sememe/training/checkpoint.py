"""Checkpoints that are either complete and verified, or not there.

A checkpoint is a folder `step_000123` with `weights.safetensors`, `ema.safetensors` (where an average is kept),
`optimizer.safetensors`, `state.json` and `manifest.json` (size and SHA-256 of the others). It is written under a
temporary name, synchronised to the disk and renamed.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sememe.errors import ModelError, OutputError

_NAME = re.compile(r"step_(\d{6,})")
_TEMPORARY = ".writing-"
_WEIGHTS, _AVERAGE, _OPTIMIZER = "weights.safetensors", "ema.safetensors", "optimizer.safetensors"
_STATE, _MANIFEST = "state.json", "manifest.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a run needs in order to go on after `step` optimiser steps.

    `state` is plain JSON: settings, times, versions. `average` is None where no average of the weights is kept.
    """

    step: int
    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor] | None = None
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(checkpoint: Checkpoint, folder: Path, keep: int = 2) -> Path:
    """Write `folder/step_...` and remove the oldest ones beyond `keep` (at least 2); return its path.

    Raises `OutputError` if it cannot be written; then nothing of it is left and older ones stay.
    """
    assert keep >= 2, "a run keeps two checkpoints at least, so that a damaged one is no loss"
    final = folder / f"step_{checkpoint.step:06d}"
    temporary = folder / f"{_TEMPORARY}{final.name}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary.mkdir()
        _write_files(checkpoint, temporary)
        if final.exists():
            final.rename(folder / f"{_TEMPORARY}replaced-{final.name}-{os.getpid()}")
        temporary.rename(final)
        _synchronise(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutputError(
            f"checkpoint {final} cannot be written: {error}; free some space or choose a folder"
        ) from error
    _remove_leftovers(folder)
    for path in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder, on the CPU. Raises `ModelError` if it is damaged or incomplete."""
    problem = find_damage(path)
    if problem is not None:
        raise ModelError(f"{path} is not a complete checkpoint: {problem}; use another one")
    state = json.loads((path / _STATE).read_text())
    average = path / _AVERAGE
    return Checkpoint(
        step=state.pop("step"),
        weights=load_file(path / _WEIGHTS),
        average=load_file(average) if average.exists() else None,
        optimizer=load_file(path / _OPTIMIZER),
        state=state,
    )


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders in `folder`, oldest first, verified or not."""
    if not folder.is_dir():
        return []
    numbered = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def find_latest(folder: Path) -> Path | None:
    """The newest checkpoint that is complete and undamaged, or None."""
    for path in reversed(list_checkpoints(folder)):
        problem = find_damage(path)
        if problem is None:
            return path
        logger.warning("passing over checkpoint %s: %s", path, problem)
    return None


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None. Reads all of it."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        files = manifest["files"]
        for name, expected in files.items():
            if "/" in name or (path / name).stat().st_size != expected["size"]:
                return f"{name} has another size than its manifest says"
            if _hash_file(path / name) != expected["sha256"]:
                return f"{name} has another SHA-256 than its manifest says"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} cannot be read"
    missing = {_WEIGHTS, _OPTIMIZER, _STATE} - set(files)
    return f"{min(missing)} is missing" if missing else None


def _write_files(checkpoint: Checkpoint, folder: Path) -> None:
    _save_tensors(checkpoint.weights, folder / _WEIGHTS)
    _save_tensors(checkpoint.optimizer, folder / _OPTIMIZER)
    if checkpoint.average is not None:
        _save_tensors(checkpoint.average, folder / _AVERAGE)
    _save_json({"step": checkpoint.step, **checkpoint.state}, folder / _STATE)
    names = sorted(path.name for path in folder.iterdir())
    files = {name: {"size": (folder / name).stat().st_size, "sha256": _hash_file(folder / name)} for name in names}
    for name in names:
        _synchronise(folder / name)
    _save_json({"format": 1, "files": files}, folder / _MANIFEST)
    _synchronise(folder / _MANIFEST)
    _synchronise(folder)


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _save_json(value: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some file systems cannot synchronise folders; the rename is still atomic there.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)
