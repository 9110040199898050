import pytest

from sememe.errors import InputError, RecipeError
from sememe.records import apply_overrides, flatten
from sememe.training.config import PhaseConfig, ScheduleConfig, TrainingConfig
from sememe.training.phases import schedule_factor


def factors(config: TrainingConfig, seconds: float = 0.0) -> list[float]:
    return [round(schedule_factor(config.list_phases()[0], step), 4) for step in range(config.num_steps)]


def test_the_schedule_warms_up_stays_and_decays() -> None:
    config = TrainingConfig(num_steps=10, schedule=ScheduleConfig(warmup_steps=4, decay_fraction=0.4, final_ratio=0.2))
    assert factors(config) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4]
    cosine = TrainingConfig(num_steps=10, schedule=ScheduleConfig(shape="cosine", warmup_steps=2))
    assert factors(cosine)[:3] == [0.5, 1.0, 1.0]
    assert factors(cosine)[6] == 0.5
    assert schedule_factor(cosine.list_phases()[0], 10) == pytest.approx(0.0)
    assert factors(TrainingConfig(num_steps=3, schedule=ScheduleConfig(shape="constant"))) == [1.0] * 3


def test_the_schedule_follows_the_larger_of_steps_and_time() -> None:
    phase = PhaseConfig(num_steps=100, schedule=ScheduleConfig(decay_fraction=0.5))
    assert schedule_factor(phase, 0, 0.75) == pytest.approx(0.5)
    assert schedule_factor(phase, 75, 0.25) == pytest.approx(0.5)
    assert schedule_factor(phase, 0, 1.5) == 0.0


def test_phases_are_reached_by_name() -> None:
    phases = (PhaseConfig(name="images", num_steps=5), PhaseConfig(name="clips", num_steps=7))
    config = TrainingConfig(phases=phases)
    changed = apply_overrides(config, ["phases.images.num_steps=2", "phases.clips.schedule.shape=cosine"])
    images, clips = changed.phases
    assert (images.num_steps, clips.num_steps, clips.schedule.shape) == (2, 7, "cosine")
    assert images.schedule == phases[0].schedule
    assert flatten(config)["phases.clips.num_steps"] == 7
    with pytest.raises(InputError, match="no setting phases"):
        apply_overrides(config, ["phases.image.num_steps=2"])


def test_decays_of_one_are_refused() -> None:
    for changes in ({"ema_decay": 1.0}, {"betas": (0.9, 1.0)}):
        with pytest.raises(RecipeError, match=f"{next(iter(changes))} must be below 1"):
            TrainingConfig(num_steps=1, **changes)
