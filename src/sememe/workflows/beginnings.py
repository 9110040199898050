"""What a run begins with: weights of its own, of a model, or of another run's checkpoint.

They are written to the run's `start/` folder, so that a run that resumes has the very networks that it began with,
whatever became of what they were taken from.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sememe.checkpoints.parts import find_part
from sememe.errors import ModelError, RecipeError
from sememe.files import atomic_folder
from sememe.training.recipes import AutoencoderRecipe, TrainingRecipe
from sememe.video_as_prompt.stage_settings import BackboneRecipe, ExpertRecipe

START_NAME = "start"
_PARTS = {
    AutoencoderRecipe: ("vae",),
    BackboneRecipe: ("transformer", "text_encoder", "tokenizer"),
    ExpertRecipe: ("expert",),
}
_WAIT_MINUTES = 60.0


@dataclass(frozen=True)
class InitialWeights:
    """Where the first weights come from.

    Attributes:
        source: as it was given.
        model: a model or complete run, whose parts are taken; None for a checkpoint.
        checkpoint: whose weights replace those of `start`; None for a model.
        start: the `start/` folder of the run that the checkpoint belongs to.
    """

    source: str
    model: str | None = None
    checkpoint: Path | None = None
    start: Path | None = None


def find_initial(source: str) -> InitialWeights:
    """Says what a source is: a checkpoint, a run that is not complete, or anything with the parts of a model.

    Raises:
        ModelError: it is a checkpoint whose run has no `start/` folder any more.
    """
    folder = Path(source)
    is_checkpoint = (folder / "state.json").is_file() and (folder / "manifest.json").is_file()
    is_incomplete = (folder / "checkpoints").is_dir() and not (folder / "model").is_dir()
    if not is_checkpoint and not is_incomplete:
        return InitialWeights(source=source, model=source)
    start = (folder.resolve().parent.parent if is_checkpoint else folder) / START_NAME
    if not start.is_dir():
        raise ModelError(f"the run of {source} has no folder {START_NAME} with the networks that it began with")
    return InitialWeights(source=source, checkpoint=folder, start=start)


def prepare_start(
    recipe: TrainingRecipe, output_dir: Path, initial: InitialWeights | None, make: Callable[[Path], None]
) -> Path:
    """The run's `start/` folder, which is made if it is not there: from `initial`, or by `make`.

    In a run of several processes the first makes it and the others wait.

    Raises:
        ModelError: `initial` lacks a part.
        OutputError: the folder cannot be written.
    """
    start = output_dir / START_NAME
    if int(os.environ.get("RANK", "0")) > 0:
        return _wait_for(start)
    if not start.is_dir():
        with atomic_folder(start) as folder:
            if initial is None:
                make(folder)
            else:
                _copy_parts(recipe, initial, folder)
    return start


def _copy_parts(recipe: TrainingRecipe, initial: InitialWeights, folder: Path) -> None:
    for part in _PARTS[type(recipe)]:
        source = find_part(initial.model if initial.start is None else initial.start, part)  # type: ignore[arg-type]
        shutil.copytree(source, folder / part)


def _wait_for(start: Path) -> Path:
    end = time.monotonic() + 60.0 * _WAIT_MINUTES
    while not start.is_dir():
        if time.monotonic() > end:
            raise RecipeError(f"expected the first process to write {start} within {_WAIT_MINUTES:g} minutes")
        time.sleep(0.5)
    return start
