"""What a run writes about itself beside its checkpoints: `run.json` when it begins, `summary.json` when it ends."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sememe.errors import ModelError, RecipeError
from sememe.files import write_text

RUN_NAME = "run.json"
SUMMARY_NAME = "summary.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """How a run began.

    Attributes:
        recipe: Name of the recipe.
        settings: All settings by dotted key, as text.
        inputs: What identifies each thing that it was made from: hashes and versions by name.
        init_from: Weights that it began with; None for its own.
        versions: Versions of the libraries.
    """

    recipe: str
    settings: Mapping[str, str]
    inputs: Mapping[str, str]
    init_from: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How far a run is.

    Attributes:
        recipe: Name of the recipe.
        step: Number of optimiser steps done.
        num_samples: Number of samples seen.
        seconds: Seconds spent, all calls together.
        loss: Smoothed loss; None if none was logged.
        ending: How it ended; see `training.progress.TrainingSummary`.
        device: Device in words.
        metrics: Metrics that were logged last, by name.
    """

    recipe: str
    step: int
    num_samples: int
    seconds: float
    loss: float | None
    ending: str
    device: str
    metrics: Mapping[str, float] = field(default_factory=dict)


def check_recipe(folder: Path, recipe: str) -> None:
    """Raises `RecipeError` if a folder holds a run of another recipe."""
    present = read_run(folder)
    if present is not None and present.recipe != recipe:
        raise RecipeError(f"{folder} holds a run of {present.recipe}, not of {recipe}; choose another output folder")


def write_run(folder: Path, record: RunRecord) -> None:
    """Writes `run.json`, or checks that the one there is of the same inputs.

    Raises:
        RecipeError: The folder holds a run of another kind or of other inputs.
        OutputError: It cannot be written.
    """
    check_recipe(folder, record.recipe)
    present = read_run(folder)
    if present is not None:
        _check_same(folder, present, record)
    write_text(folder / RUN_NAME, json.dumps({"format": _FORMAT, **asdict(record)}, indent=1, sort_keys=True) + "\n")


def read_run(folder: Path) -> RunRecord | None:
    """The `run.json` of a folder; None where there is none. Raises `ModelError` if it cannot be read."""
    content = _read(folder / RUN_NAME)
    if content is None:
        return None
    try:
        if content.pop("format") != _FORMAT:
            raise ValueError(f"it is of another format than {_FORMAT}")
        return RunRecord(**content)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / RUN_NAME} cannot be read: {error}; choose another folder") from error


def write_summary(folder: Path, summary: RunSummary) -> None:
    """Writes `summary.json`. Raises `OutputError` if it cannot."""
    write_text(folder / SUMMARY_NAME, json.dumps(asdict(summary), indent=1, sort_keys=True) + "\n")


def read_summary(folder: Path) -> RunSummary | None:
    """The `summary.json` of a folder; None where there is none. Raises `ModelError` if it cannot be read."""
    content = _read(folder / SUMMARY_NAME)
    if content is None:
        return None
    try:
        return RunSummary(**content)
    except TypeError as error:
        raise ModelError(f"{folder / SUMMARY_NAME} cannot be read: {error}") from error


def describe_run(summary: RunSummary) -> str:
    """The figures of a run, for a card."""
    minutes = summary.seconds / 60
    parts = [f"{summary.step:,} steps", f"{summary.num_samples:,} samples", f"{minutes:.0f} min on {summary.device}"]
    if summary.loss is not None:
        parts.append(f"loss {summary.loss:.4f}")
    parts += [f"{name} {value:.2f}" for name, value in sorted(summary.metrics.items())]
    return ", ".join(parts)


def _check_same(folder: Path, present: RunRecord, record: RunRecord) -> None:
    for name in sorted(present.inputs.keys() | record.inputs.keys()):
        before, now = present.inputs.get(name), record.inputs.get(name)
        if before != now:
            raise RecipeError(
                f"the run in {folder} was begun with {name} {before}, and it is {now} now; give the same {name}, or "
                "choose another output folder"
            )
    if record.init_from is not None and record.init_from != present.init_from:
        raise RecipeError(
            f"the run in {folder} began from {present.init_from or 'weights of its own'}, not from "
            f"{record.init_from}; leave out init_from to go on with it, or choose another output folder"
        )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}; choose another folder") from error
    if not isinstance(content, dict):
        raise ModelError(f"expected a JSON object in {path}, got {type(content).__name__}")
    return content
