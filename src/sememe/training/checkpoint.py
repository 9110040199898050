"""Checkpoints, which are complete and verified or do not exist.

A checkpoint is a folder `step_000123` with `weights.safetensors`, `ema.safetensors` (where an average is kept),
`optimizer.safetensors`, `state.json` and `manifest.json` (size and SHA-256 of the others). Where the weights are spread
over processes, each of these writes its rows to files of its own, such as `weights-00002-of-00008.safetensors`.
"""

import json
import logging
import re
from collections import ChainMap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from sememe.errors import ModelError, RecipeError
from sememe.files import hash_file

_NAME = re.compile(r"step_(\d{6,})")
WEIGHTS, AVERAGE, OPTIMIZER = "weights", "ema", "optimizer"
"""Stems of the files of tensors."""
STATE_NAME, MANIFEST_NAME = "state.json", "manifest.json"

Resume = Literal["auto", "never"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that a run needs to resume after `step` optimiser steps.

    `state` is plain JSON: settings, times, versions. `average` is None where no average of the weights is kept.
    """

    step: int
    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor] | None = None
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def phase(self) -> str:
        """Name of the phase that it was written in."""
        return str(self.state.get("phase", "main"))

    @property
    def model_weights(self) -> Mapping[str, Tensor]:
        """The weights to use: averaged ones if there are any."""
        return self.weights if self.average is None else ChainMap(dict(self.average), dict(self.weights))


class StoredTensors(Mapping[str, Tensor]):
    """Complete tensors in files, each read on access.

    Args:
        paths: Files. If a tensor is in several of them, its rows are concatenated in this order.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: dict[str, list[Any]] = {}
        for path in paths:
            file = safe_open(path, "pt")
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                self._files.setdefault(name, []).append(file)

    def __getitem__(self, name: str) -> Tensor:
        parts: list[Tensor] = [file.get_tensor(name) for file in self._files[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def name_file(stem: str, part: int, num_parts: int) -> str:
    """The name of a file of tensors: of the whole, or of one of several parts (from 0)."""
    return f"{stem}.safetensors" if num_parts == 1 else f"{stem}-{part + 1:05}-of-{num_parts:05}.safetensors"


def load_checkpoint(path: Path, *, is_verified: bool = False) -> Checkpoint:
    """Read a checkpoint folder, on the CPU, each tensor on access.

    Args:
        path: Folder.
        is_verified: Whether its hashes have just been verified; otherwise they are verified here.

    Raises:
        ModelError: It is damaged or incomplete.
    """
    problem = None if is_verified else find_damage(path)
    if problem is not None:
        raise ModelError(f"{path} is not a complete checkpoint: {problem}; use another one")
    state = json.loads((path / STATE_NAME).read_text())
    names = json.loads((path / MANIFEST_NAME).read_text())["files"]
    weights, average, optimizer = (
        StoredTensors([path / name for name in sorted(names) if re.fullmatch(rf"{stem}(-.*)?\.safetensors", name)])
        for stem in (WEIGHTS, AVERAGE, OPTIMIZER)
    )
    return Checkpoint(
        step=state.pop("step"), weights=weights, average=average or None, optimizer=optimizer, state=state
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
    """The number of steps in a checkpoint's name."""
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
    """Return the checkpoint that a run resumes from; None for a new run.

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
        raise ModelError(f"all checkpoints in {folder} are damaged; remove them to start again")
    return latest


def load_initial(source: Path) -> tuple[Path, Checkpoint]:
    """Return a checkpoint, or the newest of a run's folder, and where it is. Raises `ModelError` if there is none."""
    path = source if (source / MANIFEST_NAME).exists() else find_latest(source / "checkpoints")
    if path is None:
        raise ModelError(f"init_from must be a checkpoint or the folder of a run that has one, got {source}")
    return path, load_checkpoint(path)


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None. Reads all of its files."""
    try:
        manifest = json.loads((path / MANIFEST_NAME).read_text())
        files = manifest["files"]
        for name, expected in files.items():
            if "/" in name or (path / name).stat().st_size != expected["size"]:
                return f"{name} has another size than its manifest says"
            if hash_file(path / name) != expected["sha256"]:
                return f"{name} has another SHA-256 than its manifest says"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_NAME} cannot be read"
    return _find_missing(files)


def _find_missing(names: Collection[str]) -> str | None:
    """Say whether the manifest lacks a file: of the state, or of weights and optimiser, whole or in as many parts."""
    counts = {int(match[1]) for name in names if (match := re.search(r"-of-(\d{5})\.", name))} or {1}
    num_parts = max(counts)
    stems = (WEIGHTS, OPTIMIZER)
    needed = {name_file(stem, part, num_parts) for stem in stems for part in range(num_parts)} | {STATE_NAME}
    missing = needed - set(names)
    return f"{min(missing)} is missing" if missing else None
