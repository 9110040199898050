"""The learning rate over a phase, as a pure function of progress."""

import math

from sememe.training.config import PhaseConfig


def schedule_factor(phase: PhaseConfig, step: int, time_progress: float = 0.0) -> float:
    """The factor of the learning rate, between 0 and 1.

    Args:
        phase: whose schedule it is.
        step: in the phase, from 0.
        time_progress: the share of the run's time that is spent, where the schedule follows it; else 0.
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
    fraction = schedule.decay_fraction
    if schedule.decay_steps is not None:
        fraction = min(1.0, schedule.decay_steps / phase.num_steps)
    share = max(0.0, progress - (1.0 - fraction)) / fraction
    return 1.0 - (1.0 - schedule.final_ratio) * min(share, 1.0)
