"""From a recipe to a stage, and the weights that a run begins with: new ones, a model's or another run's.

The weights are written to the run's `start/` folder, so that a resumed run has the networks that it began with even
where their source is gone.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

from sememe.checkpoints.fingerprint import identify_model
from sememe.checkpoints.zoo import find_part
from sememe.errors import ModelError
from sememe.events import Progress, ProgressHandler
from sememe.files import atomic_folder
from sememe.training.process import meet
from sememe.training.recipes import TrainingRecipe
from sememe.training.stage import Preparation, Stage
from sememe.workflows.sources import check_agreement, find_parts, has_older_model
from sememe.workflows.systems import find_stage

START_NAME = "start"
_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class InitialWeights:
    """Where the first weights come from.

    Attributes:
        parts: Model, run or `start/` folder from which the parts are copied.
        checkpoint: Checkpoint whose weights then replace theirs; None for a model or a complete run.
    """

    parts: str | Path
    checkpoint: Path | None = None


@dataclass(frozen=True)
class PreparedStage:
    """A stage, and the hashes and versions of what it was made from, by name."""

    stage: Stage
    inputs: Mapping[str, str]


def prepare_stage(
    recipe: TrainingRecipe, output_dir: Path, initial: InitialWeights | None, on_progress: ProgressHandler
) -> PreparedStage:
    """Read what the recipe names and build its stage; the first time, write the run's `start/` folder.

    Raises:
        ModelError: A model is not there, or does not fit.
        InputError: Clips or latents cannot be read.
        RecipeError: Settings, models or latents do not fit together.
    """
    spec = find_stage(recipe)
    parts = find_parts(recipe, spec.needs)
    prepare = resolve_name(spec.preparation)
    preparation: Preparation = prepare(recipe, parts, lambda stage: on_progress(Progress(stage)))
    check_agreement(recipe, spec.needs, preparation.inputs)
    start = prepare_start(spec.makes, output_dir, initial, preparation.begin)
    hashes = {
        field: " ".join(identify_model(parts[part]) for part in names)
        for field, names in spec.needs.items()
        if getattr(recipe, field) is not None
    }
    # Inputs take precedence: latents are identified by the autoencoder's encoder alone, not by its decoder.
    return PreparedStage(preparation.build(start), {**hashes, **preparation.inputs})


def find_initial(source: str) -> InitialWeights:
    """Tell a checkpoint or an incomplete run from a model or a complete run.

    Raises:
        ModelError: It is a checkpoint whose run has no `start/` folder any more.
    """
    folder = Path(source)
    is_checkpoint = (folder / "state.json").is_file() and (folder / "manifest.json").is_file()
    is_without = (folder / "checkpoints").is_dir() and not (folder / "model").is_dir()
    is_incomplete = is_without or has_older_model(folder)
    if not is_checkpoint and not is_incomplete:
        return InitialWeights(source)
    start = (folder.resolve().parent.parent if is_checkpoint else folder) / START_NAME
    if not start.is_dir():
        raise ModelError(f"the run of {source} has no folder {START_NAME} with the networks that it began with")
    return InitialWeights(start, checkpoint=folder)


def prepare_start(
    makes: Sequence[str], output_dir: Path, initial: InitialWeights | None, begin: Callable[[Path], None]
) -> Path:
    """Return the run's `start/` folder; write it if it is not there.

    In a run of several processes the first writes it and the others wait; all must see the same folder.

    Args:
        makes: Parts that the run trains.
        output_dir: The run's folder.
        initial: Where these parts are copied from; None for untrained ones.
        begin: Writes untrained parts.

    Raises:
        ModelError: `initial` lacks a part, or this process does not see what the first has written.
        OutputError: The folder cannot be written.
    """
    start = output_dir / START_NAME
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0 and not start.is_dir():
        with atomic_folder(start) as folder:
            if initial is None:
                begin(folder)
            else:
                for part in makes:
                    shutil.copytree(find_part(initial.parts, part), folder / part)
    meet()
    if rank > 0:
        _wait_for(start, rank)
    return start


def _wait_for(start: Path, rank: int) -> None:
    # File systems of a network show new folders late.
    end = time.monotonic() + _WAIT_SECONDS
    while not start.is_dir():
        if time.monotonic() > end:
            raise ModelError(
                f"expected the folder {start} of the first process, process {rank} does not see it; put the run on a "
                "file system that all processes share"
            )
        time.sleep(0.5)
