"""Training by recipe: one run in one folder, new or resumed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sememe.errors import RecipeError
from sememe.events import Progress, ProgressHandler, ignore_progress
from sememe.files import lock_folder
from sememe.records import flatten, flatten_defaults
from sememe.training.config import FREE_SETTINGS
from sememe.training.recipes import TrainingRecipe
from sememe.training.run_record import (
    OF_NETWORKS,
    RUN_NAME,
    RunRecord,
    RunSummary,
    check_inputs,
    check_settings,
    read_run,
    read_summary,
    write_run,
    write_summary,
)
from sememe.workflows.recipe_list import resolve_recipe
from sememe.workflows.systems import find_stage, qualify_model

if TYPE_CHECKING:
    from sememe.training.checkpoint import Resume
    from sememe.training.progress import EventHandler, TrainingEvent, TrainingSummary

RUNS_FOLDER = Path("runs")
VALIDATION_LOSS = "validation_loss"


def resolve_training_recipe(
    name: str, overrides: Sequence[str] = (), max_minutes: float | None = None
) -> TrainingRecipe:
    """Return the training recipe of that name with some of its settings replaced, and a time limit for the whole run.

    Raises:
        RecipeError: As `resolve_recipe`.
    """
    if max_minutes is not None:
        overrides = [*overrides, f"training.max_minutes={max_minutes}"]
    return resolve_recipe(name, overrides, TrainingRecipe, "train")


def train_recipe(
    recipe: TrainingRecipe,
    output_dir: Path | str | None = None,
    *,
    init_from: str | None = None,
    resume: Resume = "auto",
    allow_changes: Collection[str] = (),
    on_progress: ProgressHandler = ignore_progress,
    on_event: EventHandler | None = None,
) -> TrainingSummary:
    """Begin a run, or resume the one in `output_dir`.

    The folder gets `run.json`, `start/` (the networks that it began with), `checkpoints/`, `log.jsonl`,
    `summary.json`, and `model/` when the run is complete. With `training.validate_every` it also gets `samples/`, where
    the stage can make some, and `best/`, a run's folder with the model that had the lowest validation loss.

    Args:
        recipe: What to train, on what and how.
        output_dir: The run's folder; None for `runs/` and the recipe's name.
        init_from: Weights to begin with: a built-in model, a model's folder, a run, or a checkpoint. Only those that
            the recipe trains are taken.
        resume: "never" refuses a folder that has checkpoints.
        allow_changes: Names of settings, such as "training.learning_rate", and of inputs, such as "clips", that may
            differ from those of the resumed run. `run.json` keeps what they were. Settings that change no result,
            such as `training.log_every`, are always free.
        on_progress: Called with what is being done.
        on_event: Called with the events of the training loop, see `training.progress`.

    Raises:
        RecipeError: Settings do not fit together, or the folder holds a run of others.
        ModelError: A model that is needed is not there, or does not fit.
        InputError: Clips or latents cannot be read.
        OutputError: The folder cannot be written, or another process trains in it.
    """
    folder = RUNS_FOLDER / recipe.name if output_dir is None else Path(output_dir)
    check_usable(recipe)
    from sememe.training.loop import train
    from sememe.training.process import open_distribution
    from sememe.workflows.beginnings import find_initial, prepare_stage

    with lock_folder(folder) if _is_main() else nullcontext(), open_distribution(recipe.training.device):
        settings = check_resumable(recipe, folder, init_from, allow_changes, resume)
        if _is_main() and not holds_run(folder):
            _clear(folder, find_stage(recipe).makes)
        initial = None if init_from is None else find_initial(qualify_model(init_from, recipe))
        checkpoint = None if initial is None else initial.checkpoint
        prepared = prepare_stage(recipe, folder, initial, on_progress)
        check_inputs(folder, prepared.inputs, allow_changes)

        def record() -> None:
            found = _describe(recipe, settings, prepared.inputs, init_from)
            write_run(folder, found, _find_step(folder), allow_changes, _list_defaults(recipe))

        before = read_summary(folder)
        watcher = _Watcher(recipe, on_progress, on_event, {} if before is None else before.metrics)
        # What the loop refuses must not be recorded as a change.
        summary = train(prepared.stage, recipe.training, folder, resume, checkpoint, watcher, record)
        if _is_main():
            _write_summaries(recipe, folder, summary, watcher.metrics)
        return summary


def _find_step(folder: Path) -> int:
    """Return the step of a run's newest checkpoint, 0 where there is none."""
    from sememe.training.checkpoint import count_steps, list_checkpoints

    present = list_checkpoints(folder / "checkpoints")
    return count_steps(present[-1]) if present else 0


def check_resumable(
    recipe: TrainingRecipe, folder: Path, init_from: str | None, allow_changes: Collection[str], resume: Resume
) -> dict[str, str]:
    """Return the settings of a run as text, by dotted key.

    Raises:
        RecipeError: The folder holds a run of another recipe, or of other settings than are allowed, or any run where
            `resume` is "never", or a complete one whose checkpoints were removed.
    """
    is_begun = holds_run(folder)
    if not is_begun and (folder / "model").exists():
        raise RecipeError(f"{folder} holds a trained model without checkpoints; choose another output folder")
    if is_begun and resume == "never":
        raise RecipeError(f"{folder} holds a run already; let it resume, or choose another output folder")
    # With weights of another model come its networks: the recipe's own have no effect and are not recorded.
    present = read_run(folder) if is_begun else None
    begins_elsewhere = (init_from or (present and present.init_from)) is not None
    unused = OF_NETWORKS if begins_elsewhere else ()
    values = flatten(recipe).items()
    settings = {key: str(value) for key, value in values if not key.startswith(unused) and key != "description"}
    # Where a part is read from is free, but what is read there is an input and has to be the same.
    free = {f"training.{name}" for name in FREE_SETTINGS} | find_stage(recipe).needs.keys()
    if is_begun:
        check_settings(folder, recipe.name, settings, free.union(allow_changes), _list_defaults(recipe))
    return settings


def _list_defaults(recipe: TrainingRecipe) -> dict[str, str]:
    return {key: str(value) for key, value in flatten_defaults(recipe).items()}


class _Watcher:
    """Pass on the events of the training loop, also as progress, and keep the last metrics, at first those given."""

    def __init__(
        self,
        recipe: TrainingRecipe,
        on_progress: ProgressHandler,
        on_event: EventHandler | None,
        metrics: Mapping[str, float],
    ) -> None:
        self._name, self._on_progress, self._on_event = recipe.name, on_progress, on_event
        self._ends_by_clock = recipe.training.max_minutes is not None
        self.metrics = metrics

    def __call__(self, event: TrainingEvent) -> None:
        from sememe.training.progress import TrainingProgress

        if isinstance(event, TrainingProgress):
            self.metrics = dict(event.metrics)
            # A run that ends by the clock has no number of steps: the time left tells how many there will be.
            left = event.num_steps - event.step
            if self._ends_by_clock and event.seconds_left is not None and event.step:
                left = min(left, round(event.seconds_left * event.step / max(event.seconds, 1e-9)))
            memory = "" if event.memory_bytes is None else f", {event.memory_bytes / 1e9:.1f} GB"
            found = event.validation
            validated = "" if found is None else f", validation {found.loss:.4f} (best {found.best_loss:.4f})"
            speed = f"{event.samples_per_second:.1f} samples/s"
            figures = f"loss {event.loss:.4f}{validated}, {speed}{memory}"
            self._on_progress(Progress(self._name, event.step, event.step + left, event.seconds_left, figures=figures))
        if self._on_event is not None:
            self._on_event(event)


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run with a checkpoint; without one there is nothing to resume."""
    from sememe.training.checkpoint import list_checkpoints

    return bool(list_checkpoints(folder / "checkpoints"))


def _clear(folder: Path, makes: Collection[str]) -> None:
    """Remove what is left of a run that ended before its first checkpoint: its record and its untrained parts."""
    (folder / RUN_NAME).unlink(missing_ok=True)
    start = folder / "start"
    # Not another folder that happens to have this name.
    if start.is_dir() and all(path.name in makes for path in start.iterdir()):
        shutil.rmtree(start)


def check_usable(recipe: TrainingRecipe) -> None:
    """Check, before anything is read, that a run is possible as its `TrainingConfig` says.

    Raises:
        MissingExtraError: A program of `trackers` is not installed.
        RecipeError: The networks cannot share tokens for `context`, or there is no compiler for `compile`.
    """
    from sememe.compute.devices import can_compile, choose_device
    from sememe.training.trackers import check_trackers

    config = recipe.training
    if config.context > 1 and not find_stage(recipe).shares_tokens:
        raise RecipeError(
            f"expected training.context=1 for {recipe.name}, got {config.context}; processes cannot share the tokens "
            "of its networks. Leave it out; fewer clips in each of more shares (training.num_shares) and "
            "training.checkpoints_activations=true take less memory, too"
        )
    check_trackers(config.trackers)
    if config.compile != "none" and not can_compile(choose_device(config.device)):
        raise RecipeError(
            "training.compile=blocks needs a C++ compiler on a CPU, and none was found; install one (g++), or give "
            "training.compile=none, which is slower"
        )


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _describe(
    recipe: TrainingRecipe, settings: Mapping[str, str], inputs: Mapping[str, str], init_from: str | None
) -> RunRecord:
    import diffusers
    import torch
    import transformers

    import sememe

    versions = {"sememe": sememe.__version__, "torch": torch.__version__}
    versions |= {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    return RunRecord(recipe=recipe.name, settings=settings, inputs=dict(inputs), init_from=init_from, versions=versions)


def _write_summaries(
    recipe: TrainingRecipe, folder: Path, summary: TrainingSummary, metrics: Mapping[str, float]
) -> None:
    """Write the summary of a run; beside its best model, if there is one, its figures at the time, and its record."""
    import torch

    from sememe.compute.devices import choose_device
    from sememe.training.checkpoint import load_checkpoint, name_checkpoint
    from sememe.training.loop import BEST_NAME

    device, ranks = choose_device(recipe.training.device), int(os.environ.get("WORLD_SIZE", "1"))
    threads = (recipe.training.num_threads or torch.get_num_threads()) * ranks
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} CPU threads"
    found = {} if summary.validation is None else {VALIDATION_LOSS: summary.validation.loss}
    written = RunSummary(
        recipe=recipe.name,
        step=summary.step,
        num_samples=summary.num_samples,
        seconds=round(summary.seconds, 1),
        loss=summary.loss,
        ending=summary.ending,
        device=f"{ranks} x {name}" if ranks > 1 and device.type == "cuda" else name,
        metrics={**metrics, **found},
    )
    write_summary(folder, written)
    if summary.model is None or summary.validation is None:
        return
    shutil.copy(folder / RUN_NAME, folder / BEST_NAME / RUN_NAME)
    best = load_checkpoint(name_checkpoint(folder / "checkpoints", summary.validation.best_step), is_verified=True)
    written = replace(
        written,
        step=best.step,
        num_samples=int(best.state["num_samples"]),
        seconds=round(best.state["seconds"], 1),
        loss=best.state["loss"],
        metrics={VALIDATION_LOSS: summary.validation.best_loss},
    )
    write_summary(folder / BEST_NAME, written)
