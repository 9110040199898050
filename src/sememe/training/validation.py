"""Validation of a run on held-out data: losses, and samples for visual inspection."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sememe.errors import RecipeError
from sememe.training.checkpoint import Checkpoint, find_damage, name_checkpoint
from sememe.training.config import TrainingConfig
from sememe.training.process import Distribution
from sememe.training.progress import IntervalMeter, RunLog, ValidationRecord
from sememe.training.stage import Stage, derive_seed, step_generator
from sememe.video.sheet import contact_sheet

NUM_BATCHES = 8
"""Batches of a validation, or more for their number to be a multiple of that of the shares."""

logger = logging.getLogger(__name__)

_BATCH, _LOSS, _SAMPLES = "validation batch", "validation", "validation samples"
_SEED = 0


class Validator:
    """Validates a stage on a fixed set of batches that its training never sees.

    Batches and noise depend only on their numbers, so that figures of one phase, of later calls and of runs with other
    seeds can be compared.

    Args:
        stage: Stage that is trained; a part of its data is held out from now on.
        config: Settings of the run.
        distribution: Processes, among which the batches are divided.
        untrained: Buffers and other tensors that a loss may change; they are restored.

    Raises:
        RecipeError: The stage has too little data.
    """

    def __init__(
        self, stage: Stage, config: TrainingConfig, distribution: Distribution, untrained: Sequence[Tensor]
    ) -> None:
        self._stage, self._config, self._distribution = stage.hold_out(), config, distribution
        self._untrained = untrained
        num_steps = -(-NUM_BATCHES // config.num_shares)
        shares = distribution.take_shares(config.num_shares)
        self._places = [(step, share) for step in range(num_steps) for share in shares]
        self.record: ValidationRecord | None = None

    @torch.no_grad()
    def enter(self, phase: str, record: ValidationRecord | None) -> None:
        """Make the batches of a phase, which may already have validations."""
        self._stage.enter(phase)
        self.record, device = record, self._distribution.device
        self._batches = [
            self._stage.batch(step, step_generator(_SEED, step, share, _BATCH), device) for step, share in self._places
        ]

    def is_due(self, step: int, *, is_over: bool) -> bool:
        """Whether to validate after so many steps, which may be the last of the phase or of the run."""
        is_new = self.record is None or self.record.step != step
        return is_new and (is_over or step % self._config.validate_every == 0)

    def validate(self, step: int, log: RunLog | None) -> ValidationRecord:
        """Validate the current weights, and draw samples; all processes must call it.

        Args:
            step: Completed steps of the run.
            log: Log for figures and samples; None for processes that have none.

        Raises:
            RecipeError: The loss is not finite.
        """
        with self._looking():
            found = self._measure()
            torch.manual_seed(derive_seed(_SEED, _SAMPLES))
            rows = self._stage.sample(step_generator(_SEED, 0, 0, _SAMPLES), self._distribution.device)
        if not math.isfinite(found["loss"]):
            raise RecipeError(
                f"the validation loss is not finite after step {step}; lower training.learning_rate or use "
                "training.precision=fp32, and resume from the last checkpoint"
            )
        self.record = ValidationRecord.join(self.record, step, found["loss"])
        if log is not None:
            log.write({"step": step, **{f"validation_{name}": value for name, value in found.items()}})
            if rows:
                log.show(contact_sheet(rows), step)
        return self.record

    def _measure(self) -> dict[str, float]:
        """Return the mean figures of all batches."""
        meter = IntervalMeter()
        for (number, share), batch in zip(self._places, self._batches, strict=True):
            kept = [tensor.clone() for tensor in self._untrained]
            torch.manual_seed(derive_seed(_SEED, number, share, _LOSS))
            generator = step_generator(_SEED, number, share, _LOSS, self._distribution.device)
            meter.add(self._stage.loss(batch, generator))
            for tensor, value in zip(self._untrained, kept, strict=True):
                tensor.copy_(value)
        return meter.read(self._distribution).means()

    @contextmanager
    def _looking(self) -> Iterator[None]:
        with torch.no_grad(), evaluating(self._stage.modules()):
            if self._config.compile == "none":
                yield
                return
            # Compiled blocks would be compiled again, for evaluation.
            with torch.compiler.set_stance("force_eager"):
                yield


def find_record(loaded: Checkpoint, folder: Path, distribution: Distribution) -> ValidationRecord | None:
    """Return the validations that a run resumes with; all processes must call it.

    Args:
        loaded: Checkpoint that it resumes from.
        folder: Folder of its checkpoints.
        distribution: Processes of the run.

    Returns:
        The record; None if there is none, or if the best checkpoint is lost, so that the next one is the best so far.
    """
    found = loaded.state.get("validation")
    if found is None:
        return None
    record = ValidationRecord(**found)
    path, problem = name_checkpoint(folder, record.best_step), None
    if distribution.is_main and record.best_step != loaded.step:
        problem = find_damage(path)
    if problem is not None:
        logger.warning("passing over the best checkpoint %s: %s", path, problem)
    return None if distribution.share([float(problem is not None)])[0] else record


@contextmanager
def evaluating(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put modules into evaluation mode for the duration of a block, and restore the mode of each part."""
    parts = [part for module in modules.values() for part in module.modules()]
    modes = [part.training for part in parts]
    try:
        for module in modules.values():
            module.eval()
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
