"""Writing the model that a stage has trained as a loadable folder."""

import os
import shutil
from pathlib import Path

from sememe.errors import ModelError, OutputError
from sememe.training.average import borrowed_weights, copy_tensors
from sememe.training.checkpoint import load_checkpoint
from sememe.training.optimizer import tracked_tensors, trained_parameters
from sememe.training.stage import Stage, Weights


def export_stage(stage: Stage, folder: Path, weights: Weights) -> Path:
    """Let the stage write its model, as it is now, and put it at `folder` whole; an older one is replaced.

    Raises `OutputError` if it cannot be written; an older one then stays.
    """
    temporary = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        stage.export(temporary, weights)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"model folder {folder} cannot be written: {error}; free some space or choose another"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    return folder


def export_checkpoint(stage: Stage, checkpoint: Path, folder: Path, weights: Weights = "ema") -> Path:
    """Write the model of a checkpoint, for a look at a run that goes on. Leaves the checkpoint's weights in the stage.

    Raises `ModelError` if the checkpoint is damaged, belongs to another stage or holds no averaged weights.
    """
    loaded = load_checkpoint(checkpoint)
    if loaded.state.get("stage") != stage.name:
        raise ModelError(
            f"{checkpoint} is of stage {loaded.state.get('stage')}, not {stage.name}; use one of this stage"
        )
    if weights == "ema" and loaded.average is None:
        raise ModelError(f"{checkpoint} holds no averaged weights; ask for the raw ones")
    modules = stage.modules()
    copy_tensors(loaded.weights, tracked_tensors(modules), str(checkpoint))
    if weights == "raw" or loaded.average is None:
        return export_stage(stage, folder, weights)
    with borrowed_weights(trained_parameters(modules), loaded.average):
        return export_stage(stage, folder, weights)
