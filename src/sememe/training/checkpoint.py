"""Checkpoints that are either complete and verified, or not there.

A checkpoint is a folder `step_000123` with `weights.safetensors`, `ema.safetensors` (where an average is kept),
`optimizer.safetensors`, `state.json` and `manifest.json` (size and SHA-256 of the others).
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file
from torch import Tensor

from sememe.checkpoints.tensor_files import save_tensors
from sememe.errors import ModelError, RecipeError
from sememe.files import atomic_folder, hash_file

_NAME = re.compile(r"step_(\d{6,})")
# What a process that was killed while it wrote a checkpoint leaves; see `atomic_folder`.
_LEFTOVERS = (".step_*.writing-*", ".step_*.replaced-*")
_WEIGHTS, _AVERAGE, _OPTIMIZER = "weights.safetensors", "ema.safetensors", "optimizer.safetensors"
_STATE, _MANIFEST = "state.json", "manifest.json"

Resume = Literal["auto", "never"]

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

    Raises:
        OutputError: It cannot be written; then nothing of it is left and older ones stay.
    """
    assert keep >= 2, "a run keeps two checkpoints at least, so that a damaged one is no loss"
    final = name_checkpoint(folder, checkpoint.step)
    for path in (path for pattern in _LEFTOVERS for path in folder.glob(pattern)):
        shutil.rmtree(path, ignore_errors=True)
    with atomic_folder(final) as temporary:
        _write_files(checkpoint, temporary)
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


def name_checkpoint(folder: Path, step: int) -> Path:
    """Where in `folder` the checkpoint of a step is."""
    return folder / f"step_{step:06d}"


def count_steps(path: Path) -> int:
    """The steps that a checkpoint's name tells."""
    return int(path.name.removeprefix("step_"))


def find_latest(folder: Path) -> Path | None:
    """The newest checkpoint that is complete and undamaged, or None."""
    for path in reversed(list_checkpoints(folder)):
        problem = find_damage(path)
        if problem is None:
            return path
        logger.warning("passing over checkpoint %s: %s", path, problem)
    return None


def find_own(run: Path, resume: Resume) -> Path | None:
    """Return the checkpoint that a run goes on from; None for a run that begins.

    Raises:
        RecipeError: The run has checkpoints, but is not to be resumed.
        ModelError: None of its checkpoints is undamaged.
    """
    folder = run / "checkpoints"
    present = list_checkpoints(folder)
    if resume == "never" and present:
        raise RecipeError(f"{folder} holds checkpoints already; let the run resume, or choose another folder")
    latest = find_latest(folder)
    if present and latest is None:
        raise ModelError(f"no checkpoint in {folder} is undamaged; remove them to begin again")
    return latest


def load_initial(source: Path) -> tuple[Path, Checkpoint]:
    """Return a checkpoint, or the newest of a run's folder, and where it is. Raises `ModelError` if there is none."""
    path = source if (source / _MANIFEST).exists() else find_latest(source / "checkpoints")
    if path is None:
        raise ModelError(f"init_from must be a checkpoint or the folder of a run that has one, got {source}")
    return path, load_checkpoint(path)


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None. Reads all of it."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        files = manifest["files"]
        for name, expected in files.items():
            if "/" in name or (path / name).stat().st_size != expected["size"]:
                return f"{name} has another size than its manifest says"
            if hash_file(path / name) != expected["sha256"]:
                return f"{name} has another SHA-256 than its manifest says"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} cannot be read"
    missing = {_WEIGHTS, _OPTIMIZER, _STATE} - set(files)
    return f"{min(missing)} is missing" if missing else None


def _write_files(checkpoint: Checkpoint, folder: Path) -> None:
    save_tensors(checkpoint.weights, folder / _WEIGHTS)
    save_tensors(checkpoint.optimizer, folder / _OPTIMIZER)
    if checkpoint.average is not None:
        save_tensors(checkpoint.average, folder / _AVERAGE)
    _save_json({"step": checkpoint.step, **checkpoint.state}, folder / _STATE)
    names = sorted(path.name for path in folder.iterdir())
    files = {name: {"size": (folder / name).stat().st_size, "sha256": hash_file(folder / name)} for name in names}
    _save_json({"format": 1, "files": files}, folder / _MANIFEST)


def _save_json(value: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
