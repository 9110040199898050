"""Trackers that show the figures and samples of a run, in addition to its files."""

import importlib.util
import os
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sememe.errors import MissingExtraError, OutputError
from sememe.files import write_text
from sememe.training.config import TrackerName
from sememe.training.run_record import read_run
from sememe.video.clip import Image

_EXTRAS: Mapping[TrackerName, str] = {"tensorboard": "train", "wandb": "wandb"}


class TensorBoardTracker:
    """Writes the files of TensorBoard to `tensorboard/` in a run's folder; see `open_trackers`."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def show(self, sheet: Image, step: int) -> None:
        self._writer.add_image("samples", sheet, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """Logs to Weights & Biases, as one run even if it is interrupted; see `open_trackers`.

    Its environment variables, such as WANDB_MODE=offline, configure it. `wandb/` in the run's folder has its files and
    the run's id.
    """

    def __init__(self, folder: Path, step: int) -> None:
        import wandb

        record, path = read_run(folder), folder / "wandb" / "run-id"
        if not step or not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, secrets.token_hex(8))
        self._make_image = wandb.Image
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "sememe"),
                dir=str(folder),
                id=path.read_text(),
                name=folder.resolve().name,
                config={} if record is None else dict(record.settings),
                allow_val_change=True,
                resume="allow",
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise OutputError(
                f"Weights & Biases refuses the run: {reason}; log in with `wandb login`, set WANDB_MODE=offline, "
                "or leave wandb out of training.trackers"
            ) from error

    def add(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def show(self, sheet: Image, step: int) -> None:
        self._run.log({"samples": self._make_image(sheet)}, step=step)

    def close(self) -> None:
        self._run.finish()


Tracker = TensorBoardTracker | WandbTracker
"""Receives figures and samples of a run."""


def check_trackers(names: Collection[TrackerName]) -> None:
    """Raise `MissingExtraError` for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, _EXTRAS[name])


def open_trackers(names: Collection[TrackerName], folder: Path, step: int) -> list[Tracker]:
    """Start tracking a run, or resume.

    Args:
        names: Names of the trackers: "tensorboard", "wandb".
        folder: Folder of the run.
        step: Completed steps of the run.

    Raises:
        MissingExtraError: The package of a tracker is not installed.
        OutputError: A tracker refuses the run.
    """
    check_trackers(names)
    kinds: Mapping[TrackerName, type[Any]] = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker}
    return [kinds[name](folder, step) for name in names]
