"""The learning rate over a run, as a pure function of progress."""

import math

from sememe.training.config import TrainingConfig


def schedule_factor(config: TrainingConfig, step: int, seconds: float) -> float:
    """The factor of the learning rate for step number `step` (from 0), `seconds` into the run; between 0 and 1."""
    schedule = config.schedule
    progress = step / config.num_steps
    if config.time_decay:
        assert config.max_minutes is not None
        progress = max(progress, seconds / (60.0 * config.max_minutes))
    progress = min(progress, 1.0)
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    return warmup * _decay(config, progress)


def _decay(config: TrainingConfig, progress: float) -> float:
    schedule = config.schedule
    if schedule.shape == "constant":
        return 1.0
    if schedule.shape == "cosine":
        start = min(schedule.warmup_steps / config.num_steps, 1.0)
        share = max(0.0, progress - start) / max(1.0 - start, 1e-9)
        return schedule.final_ratio + (1.0 - schedule.final_ratio) * 0.5 * (1.0 + math.cos(math.pi * share))
    fraction = schedule.decay_fraction
    if schedule.decay_steps is not None:
        fraction = min(1.0, schedule.decay_steps / config.num_steps)
    share = max(0.0, progress - (1.0 - fraction)) / fraction
    return 1.0 - (1.0 - schedule.final_ratio) * min(share, 1.0)
