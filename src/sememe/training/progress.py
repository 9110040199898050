"""What a run reports: events for a caller, and a log of JSON lines."""

import json
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sememe.errors import RecipeError
from sememe.files import make_folder, write_text, writing
from sememe.training.config import TrackerName
from sememe.training.process import Distribution
from sememe.training.stage import NoiseLosses, StepLoss
from sememe.training.trackers import open_trackers
from sememe.video.clip import Image
from sememe.video.picture import write_image


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """Results of the validations of a phase so far.

    Attributes:
        step: Steps of the run at the last one.
        loss: Its loss.
        best_step: Steps at the one with the lowest loss.
        best_loss: That loss.
    """

    step: int
    loss: float
    best_step: int
    best_loss: float

    @classmethod
    def join(cls, before: "ValidationRecord | None", step: int, loss: float) -> "ValidationRecord":
        """The record after one more validation."""
        if before is None or loss < before.best_loss:
            return cls(step=step, loss=loss, best_step=step, best_loss=loss)
        return cls(step=step, loss=loss, best_step=before.best_step, best_loss=before.best_loss)


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """State of a run; sent whenever a line is logged.

    `loss` is smoothed over the lines so far. `seconds` counts the whole run; `seconds_left` None is not yet known.
    `memory_bytes` is the peak of the main process so far, on its GPU if it trains there; None is not known.
    `validation` is the result on held-out data in this phase; None before the first.
    """

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    samples_per_second: float
    seconds: float
    seconds_left: float | None
    memory_bytes: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    validation: ValidationRecord | None = None

    def to_line(self, loss: float) -> dict[str, Any]:
        """Return the line of the log, with the loss of the interval in place of the smoothed one."""
        return {
            "step": self.step,
            "loss": loss,
            "learning_rate": self.learning_rate,
            "grad_norm": self.grad_norm,
            "samples_per_second": round(self.samples_per_second, 3),
            "seconds": round(self.seconds, 3),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
            "memory_bytes": self.memory_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """A checkpoint is complete on the disk."""

    step: int
    path: Path


NOISE_NAMES = ("loss_noise_0_25", "loss_noise_25_50", "loss_noise_50_75", "loss_noise_75_100")
"""Names of the mean losses of samples by the percentage of noise in them."""

Ending = Literal["finished", "budget", "paused", "signal"]


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """How a call of `train` ended.

    `ending`: all steps done ("finished"), the whole run's time spent ("budget"), this call's time spent ("paused"),
    or SIGINT or SIGTERM received ("signal", named in `signal_name`). After the first two the run is complete and
    `model` is the exported folder; after the others the same call goes on from `checkpoint`.
    `loss` is the smoothed loss, None if nothing was logged; `seconds` counts the whole run. `validation` is the result
    on held-out data in the last phase; None without validation.
    """

    step: int
    num_steps: int
    num_samples: int
    seconds: float
    loss: float | None
    ending: Ending
    signal_name: str | None
    checkpoint: Path | None
    model: Path | None
    validation: ValidationRecord | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.ending in ("finished", "budget")


TrainingEvent = TrainingProgress | CheckpointSaved
EventHandler = Callable[[TrainingEvent], None]


@dataclass(frozen=True, kw_only=True)
class IntervalSums:
    """Sums over the batches since the last line, and the weight of each."""

    num_batches: int
    num_samples: int
    seconds: float
    sums: Mapping[str, float]
    weights: Mapping[str, float]

    def means(self) -> dict[str, float]:
        """The mean of each figure, except for noise levels that did not occur."""
        return {
            name: total / (self.weights[name] or 1.0)
            for name, total in self.sums.items()
            if self.weights[name] or name not in NOISE_NAMES
        }

    def to_state(self) -> dict[str, Any]:
        """Return the sums as JSON can hold them; numbers that are not finite become null."""
        sums = {name: total if math.isfinite(total) else None for name, total in self.sums.items()}
        return {**asdict(self), "sums": sums}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "IntervalSums":
        """Restore sums from `to_state`."""
        sums = {name: math.nan if total is None else total for name, total in state["sums"].items()}
        return cls(**{**state, "sums": sums})


class IntervalMeter:
    """Sums the figures of batches as tensors, to synchronise with the device only when a line is logged."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self._sums: dict[str, Tensor | float] = {}
        self._weights: dict[str, Tensor | float] = {}
        self._num_batches = self._num_samples = 0
        self._seconds_before = 0.0
        self.start_clock()

    def go_on(self, interval: IntervalSums) -> None:
        """Resume an interrupted interval."""
        self._sums = {name: torch.tensor(value) for name, value in interval.sums.items()}
        self._weights = {name: torch.tensor(value) for name, value in interval.weights.items()}
        self._num_batches, self._num_samples = interval.num_batches, interval.num_samples
        self._seconds_before = interval.seconds
        self.start_clock()

    def start_clock(self) -> None:
        """Start the clock, in addition to the seconds of a resumed interval."""
        self._since = time.monotonic()

    @torch.no_grad()
    def add(self, result: StepLoss) -> None:
        """Add the loss and the metrics of one batch."""
        weight = result.divisor
        weighted = {name: value * weight for name, value in result.metrics.items()}
        for name, value in {"loss": result.total.detach(), **weighted}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._weights[name] = self._weights.get(name, 0.0) + weight
        if result.by_noise is not None:
            self._add_by_noise(result.by_noise)
        self._num_batches += 1
        self._num_samples += result.num_samples

    def _add_by_noise(self, found: NoiseLosses) -> None:
        losses, count = found.losses.detach().float(), len(NOISE_NAMES)
        places = (found.sigma.detach() * count).long().clamp(0, count - 1)
        for values, kept in ((losses, self._sums), (torch.ones_like(losses), self._weights)):
            sums = losses.new_zeros(count).index_add(0, places, values)
            for name, value in zip(NOISE_NAMES, sums.unbind(), strict=True):
                kept[name] = kept.get(name, 0.0) + value

    def read(self, distribution: Distribution) -> IntervalSums:
        """The sums of the interval over all processes; synchronises with the device once."""
        names = distribution.join_names(self._sums)
        values = [each.get(name, 0.0) for each in (self._sums, self._weights) for name in names]
        device = next((value.device for value in values if isinstance(value, Tensor)), None)
        tensors = [torch.as_tensor(value, dtype=torch.float32, device=device) for value in values]
        own = torch.stack(tensors).tolist() if tensors else []
        *numbers, num_batches, num_samples = distribution.reduce([*own, self._num_batches, self._num_samples])
        return IntervalSums(
            num_batches=int(num_batches),
            num_samples=int(num_samples),
            seconds=self._seconds_before + time.monotonic() - self._since,
            sums=dict(zip(names, numbers[: len(names)], strict=True)),
            weights=dict(zip(names, numbers[len(names) :], strict=True)),
        )


class FiniteWatch:
    """Records on the device the first step at which a value was not finite; read at the next synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), torch.inf, device=device)

    @torch.no_grad()
    def add(self, value: Tensor, step: int) -> None:
        """Check a scalar of a step, without synchronising."""
        bad = torch.where(torch.isfinite(value), torch.inf, float(step)).to(self._first.dtype)
        torch.minimum(self._first, bad, out=self._first)

    def check(self) -> None:
        """Raise `RecipeError` if a value was not finite."""
        first = self._first.item()
        if first != float("inf"):
            raise RecipeError(
                f"loss or gradients are not finite at step {int(first)}; lower training.learning_rate, lengthen "
                "training.schedule.warmup_steps or use training.precision=fp32, and resume from the last checkpoint"
            )


class RunLog:
    """The log of a run: `log.jsonl`, one JSON object a line, sheets of samples, and trackers that show both.

    Args:
        folder: Folder of the run.
        step: Completed steps.
        trackers: Names of the trackers.

    Raises:
        OutputError: It cannot be written.
        MissingExtraError: The package of a tracker is not installed.
    """

    def __init__(self, folder: Path, step: int, trackers: Collection[TrackerName] = ()) -> None:
        self._path = folder / "log.jsonl"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._trackers = open_trackers(trackers, folder, step)
            self._drop_lines_after(step)
            self._file = self._path.open("a", buffering=1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line; numbers that are not finite become null."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        with writing(self._path):
            self._file.write(json.dumps(clean) + "\n")
        figures = {key: value for key, value in record.items() if key != "step" and isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.add(figures, record["step"])

    def show(self, sheet: Image, step: int) -> None:
        """Write a contact sheet to `samples/`."""
        folder = self._path.parent / "samples"
        make_folder(folder)
        write_image(sheet, folder / f"step_{step:06}.png")
        for tracker in self._trackers:
            tracker.show(sheet, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def _drop_lines_after(self, step: int) -> None:
        # Steps after the checkpoint that a killed run resumes from are repeated; their lines would be duplicated.
        if not self._path.exists():
            return
        kept = [line for line in self._path.read_text().splitlines() if _is_until(line, step)]
        write_text(self._path, "".join(f"{line}\n" for line in kept))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, in order; empty where there is none."""
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _is_until(line: str, step: int) -> bool:
    try:
        return int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):
        return False
