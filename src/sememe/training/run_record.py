"""Files that a run writes beside its checkpoints: `run.json` when it begins, `summary.json` when it ends."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sememe.errors import ModelError, RecipeError
from sememe.files import write_text

RUN_NAME = "run.json"
SUMMARY_NAME = "summary.json"
OF_NETWORKS = ("network.", "text.")
"""Beginnings of the names of settings that describe networks; a run keeps those that it began with."""
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class RunChange:
    """What changed when a run was resumed.

    Attributes:
        step: Steps done by then.
        before: Values of settings, inputs and versions before, by name.
        now: Values since.
    """

    step: int
    before: Mapping[str, str]
    now: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Settings and inputs of a run, and their later changes; `changes` only grows.

    Attributes:
        recipe: Name of the recipe.
        settings: All settings by dotted key, as text.
        inputs: Identity of each input: hashes and versions by name.
        init_from: Weights that it began with; None for its own.
        versions: Versions of the libraries.
        changes: Later changes, in order.
    """

    recipe: str
    settings: Mapping[str, str]
    inputs: Mapping[str, str]
    init_from: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[RunChange, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """State of a run.

    Attributes:
        recipe: Name of the recipe.
        step: Number of optimiser steps done.
        num_samples: Number of samples seen.
        seconds: Seconds spent, all calls together.
        loss: Smoothed loss; None if none was logged.
        ending: How it ended; see `training.progress.TrainingSummary`.
        device: Device in words.
        metrics: Last logged metrics, by name.
    """

    recipe: str
    step: int
    num_samples: int
    seconds: float
    loss: float | None
    ending: str
    device: str
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether nothing was left to do."""
        return self.ending in ("finished", "budget")


def check_settings(
    folder: Path,
    recipe: str,
    settings: Mapping[str, str],
    allowed: Collection[str] = (),
    defaults: Mapping[str, str] | None = None,
) -> None:
    """Check, before anything slow is done, that a folder holds no run, or one of this recipe and these settings.

    Args:
        folder: Folder of the run.
        recipe: Name of the recipe.
        settings: All settings by dotted key, as text.
        allowed: Names of the settings that may differ from before.
        defaults: Values that settings had before they were introduced, by dotted key.

    Raises:
        RecipeError: The folder holds a run of another recipe, or of other settings than are allowed.
    """
    present = read_run(folder, settings, defaults)
    if present is None:
        return
    if present.recipe != recipe:
        raise RecipeError(f"{folder} holds a run of {present.recipe}, not of {recipe}; choose another output folder")
    _refuse(folder, present.settings, _find_changes(present.settings, settings), allowed)


def check_inputs(folder: Path, inputs: Mapping[str, str], allowed: Collection[str] = ()) -> dict[str, str]:
    """Return the inputs that differ from those of a folder's run, by name.

    Args:
        folder: Folder of the run; nothing differs where it holds none.
        inputs: Identity of each input of the run.
        allowed: Names of the inputs that may differ.

    Raises:
        RecipeError: Others differ.
    """
    present = read_run(folder)
    before = {} if present is None else present.inputs
    # An input that is no longer read is also a change.
    gone = dict.fromkeys(before.keys() - inputs.keys(), "none")
    changes = _find_changes(before, {**inputs, **gone})
    _refuse(folder, before, changes, allowed)
    return changes


def write_run(
    folder: Path,
    record: RunRecord,
    step: int = 0,
    allowed: Collection[str] = (),
    defaults: Mapping[str, str] | None = None,
) -> None:
    """Write `run.json`, or check that the existing one has the same inputs, and add what has changed.

    Args:
        folder: Folder of the run.
        record: The run as it is resumed; its settings have passed `check_settings`.
        step: Steps done so far.
        allowed: Names of the inputs that may differ from before.
        defaults: As in `check_settings`.

    Raises:
        RecipeError: The folder holds a run of other inputs than are allowed.
        OutputError: It cannot be written.
    """
    present = read_run(folder, record.settings, defaults)
    if present is not None:
        record = _go_on(folder, present, record, step, allowed)
    write_text(folder / RUN_NAME, json.dumps({"format": _FORMAT, **asdict(record)}, indent=1, sort_keys=True) + "\n")


def read_run(
    folder: Path, settings: Collection[str] = (), defaults: Mapping[str, str] | None = None
) -> RunRecord | None:
    """Read the `run.json` of a folder; None where there is none.

    Args:
        folder: Folder of the run.
        settings: Current settings. Those that the run did not have get their value in `defaults`.
        defaults: As in `check_settings`.

    Raises:
        ModelError: It cannot be read.
    """
    content = _read(folder / RUN_NAME)
    if content is None:
        return None
    try:
        if content.pop("format") != _FORMAT:
            raise ValueError(f"it is of another format than {_FORMAT}")
        changes = tuple(RunChange(**change) for change in content.pop("changes", ()))
        found = RunRecord(**content, changes=changes)
        added = {name: value for name, value in (defaults or {}).items() if name in settings}
        return replace(found, settings={**added, **found.settings})
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / RUN_NAME} cannot be read: {error}; choose another folder") from error


def write_summary(folder: Path, summary: RunSummary) -> None:
    """Write `summary.json`. Raises `OutputError` if it cannot be written."""
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
    """The figures of a run, for a model card."""
    minutes = summary.seconds / 60
    parts = [f"{summary.step:,} steps", f"{summary.num_samples:,} samples", f"{minutes:.0f} min on {summary.device}"]
    if summary.loss is not None:
        parts.append(f"loss {summary.loss:.4f}")
    parts += [f"{name} {value:.2f}" for name, value in sorted(summary.metrics.items())]
    return ", ".join(parts)


def _go_on(folder: Path, present: RunRecord, record: RunRecord, step: int, allowed: Collection[str]) -> RunRecord:
    """The stored record with what is new."""
    inputs = check_inputs(folder, record.inputs, allowed)
    settings = _find_changes(present.settings, record.settings)
    versions = _find_changes(present.versions, record.versions)
    # A path may be given in several ways.
    begun, given = (each and Path(each).resolve() for each in (present.init_from, record.init_from))
    if given is not None and given != begun:
        raise RecipeError(
            f"the run in {folder} began from {present.init_from or 'its own weights'}, not from "
            f"{record.init_from}; leave out init_from to resume it, or choose another output folder"
        )
    now = {**settings, **inputs, **versions}
    if not now:
        return present
    known = {**present.settings, **present.inputs, **present.versions}
    change = RunChange(step=step, before={name: known[name] for name in now}, now=now)
    return replace(
        present,
        settings={**present.settings, **settings},
        inputs={**present.inputs, **inputs},
        versions={**present.versions, **versions},
        changes=(*present.changes, change),
    )


def _find_changes(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """The differences, by name; entries that were not recorded before are not compared."""
    return {name: now[name] for name in before if name in now and now[name] != before[name]}


def _refuse(folder: Path, before: Mapping[str, str], changes: Mapping[str, str], allowed: Collection[str]) -> None:
    fixed = [name for name in changes if name.startswith(OF_NETWORKS)]
    refused = sorted(name for name in changes if name not in allowed or name in fixed)
    if not refused:
        return
    listed = "; ".join(f"{name} {before[name]}, and it is {changes[name]} now" for name in refused[:3])
    more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
    way = f"or resume with --allow-changes {','.join(refused)}"
    raise RecipeError(
        f"the run in {folder} was begun with {listed}{more}; give the same, choose another output folder, "
        f"{'because a run keeps its networks' if fixed else way}"
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
