"""The phases of a run: when each begins, which parameters it trains, and at which learning rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sememe.errors import ModelError, RecipeError
from sememe.training.checkpoint import Checkpoint
from sememe.training.config import PhaseConfig, TrainingConfig
from sememe.training.optimizer import NamedOptimizer, trained_parameters
from sememe.training.stage import Stage


def schedule_factor(phase: PhaseConfig, step: int, time_progress: float = 0.0) -> float:
    """The factor of the learning rate, between 0 and 1.

    Args:
        phase: The phase, whose schedule is followed.
        step: Step within the phase, from 0.
        time_progress: Elapsed share of the run's time (0..1) if the schedule follows time; else 0.
    """
    schedule = phase.schedule
    progress = min(max(step / phase.num_steps, time_progress), 1.0)
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    return warmup * _decay(phase, progress)


def _decay(phase: PhaseConfig, progress: float) -> float:
    schedule = phase.schedule
    if schedule.shape == "constant":
        return 1.0
    if schedule.shape == "cosine":
        start = min(schedule.warmup_steps / phase.num_steps, 1.0)
        share = max(0.0, progress - start) / max(1.0 - start, 1e-9)
        return schedule.final_ratio + (1.0 - schedule.final_ratio) * 0.5 * (1.0 + math.cos(math.pi * share))
    share = max(0.0, progress - (1.0 - schedule.decay_fraction)) / schedule.decay_fraction
    return 1.0 - (1.0 - schedule.final_ratio) * min(share, 1.0)


@dataclass(frozen=True, kw_only=True)
class PlannedPhase:
    """A phase and its place in the run.

    Attributes:
        settings: Settings of the phase.
        start: First of its steps, counted over the run.
        parameters: Parameters that it trains, by name.
        begun: Step since which each of them has been trained without interruption.
    """

    settings: PhaseConfig
    start: int
    parameters: Mapping[str, nn.Parameter]
    begun: Mapping[str, int]

    @property
    def stop(self) -> int:
        """The step at which the phase is over."""
        return self.start + self.settings.num_steps


def plan_phases(stage: Stage, config: TrainingConfig) -> list[PlannedPhase]:
    """Enter each phase once to see what it trains. Leaves the stage in the last."""
    phases: list[PlannedPhase] = []
    for settings in config.list_phases():
        start = phases[-1].stop if phases else 0
        before = phases[-1].begun if phases else {}
        stage.enter(settings.name)
        parameters = trained_parameters(stage.modules())
        # What the optimiser of a later phase refuses is refused before the first step.
        NamedOptimizer(stage.modules(), config, settings)
        begun = {name: before.get(name, start) for name in parameters}
        phases.append(PlannedPhase(settings=settings, start=start, parameters=parameters, begun=begun))
    return phases


def find_phase(phases: Sequence[PlannedPhase], step: int) -> int:
    """The index of the phase that step number `step` belongs to; the last one's where the run is over."""
    return next((index for index, phase in enumerate(phases) if step < phase.stop), len(phases) - 1)


def check_checkpoint(
    checkpoint: Checkpoint, path: Path, stage: Stage, config: TrainingConfig, phases: Sequence[PlannedPhase]
) -> None:
    """Check that a run can go on from a checkpoint.

    Args:
        checkpoint: Checkpoint.
        path: Its folder.
        stage: Stage of the run.
        config: Settings of the run.
        phases: Phases of the run.

    Raises:
        ModelError: It is of another stage.
        RecipeError: It was written with another optimiser, or in a phase that has moved.
    """
    state, step = checkpoint.state, checkpoint.step
    if state.get("stage") != stage.name:
        raise ModelError(f"{path} is of stage {state.get('stage')}, not {stage.name}; choose another folder")
    optimizer = state.get("config", {}).get("optimizer")
    if optimizer != config.optimizer:
        raise RecipeError(
            f"{path} was written with optimizer {optimizer}, not {config.optimizer}; keep it, or begin a new run with "
            "init_from"
        )
    name, step_in_phase = checkpoint.phase, state.get("phase_step", step)
    place = next((phase for phase in phases if phase.settings.name == name), None)
    is_over = place is not None and place is not phases[-1] and step_in_phase > place.settings.num_steps
    if place is None or place.start + step_in_phase != step or is_over:
        raise RecipeError(
            f"the run is at step {step_in_phase} of phase {name!r} and {step} in all, which does not match its "
            "phases; keep the names and lengths of the phases that it has begun"
        )
