import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sememe.errors import RecipeError
from sememe.training.config import ScheduleConfig, TrainingConfig, apply_overrides, list_settings
from sememe.training.schedule import schedule_factor


@dataclass(frozen=True)
class Recipe:
    name: str = "small"
    folder: Path = Path("here")
    is_mirrored: bool = False
    size: int | tuple[int, int] = 64
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(num_steps=10))


def test_overrides_are_read_by_the_type_of_the_setting() -> None:
    recipe = apply_overrides(
        Recipe(),
        [
            "training.learning_rate=1e-3",
            "training.num_steps=20",
            "training.betas=0.8, 0.95",
            "training.muon_exclude=first,last",
            "training.learning_rate_factors=vae.*:0.1,*embed*:2",
            "training.max_minutes=2",
            "training.save_minutes=none",
            "training.schedule.shape=cosine",
            "training.time_decay=true",
            "folder=there",
            "is_mirrored=True",
            "size=32,48",
        ],
    )
    training = recipe.training
    assert (training.learning_rate, training.num_steps, training.betas) == (1e-3, 20, (0.8, 0.95))
    assert (training.muon_exclude, training.max_minutes, training.save_minutes) == (("first", "last"), 2.0, None)
    assert training.learning_rate_factors == {"vae.*": 0.1, "*embed*": 2.0}
    assert (training.schedule.shape, training.time_decay) == ("cosine", True)
    assert (recipe.folder, recipe.is_mirrored, recipe.size) == (Path("there"), True, (32, 48))
    assert Recipe().training.num_steps == 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learing_rate=1", "no setting training.learing_rate; the nearest is training.learning_rate"),
        ("learning_rate=1", "the nearest is training.learning_rate"),
        ("training.num_steps=1.5", "training.num_steps must be a whole number, got '1.5'"),
        ("training.learning_rate=fast", "must be a number, got 'fast'"),
        ("training.time_decay=1", "must be true or false"),
        ("training.schedule.shape=linear", "must be one of constant, cosine, constant_then_decay, got 'linear'"),
        ("training.schedule=cosine", "is a group of settings; set one of them: training.schedule.warmup_steps"),
        ("training.betas=0.9", "must be 2 values"),
        ("training.learning_rate", "must look like key=value"),
        ("training.learning_rate=-1", "learning_rate must be above 0, got -1.0"),
        ("training.learning_rate_factors=embed", "training.learning_rate_factors for '' must be a number, got 'embed'"),
        ("training.keep_checkpoints=1", "must be 2 or more"),
        ("training.time_decay=true", "set max_minutes"),
    ],
)
def test_an_override_that_does_not_fit_is_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        apply_overrides(Recipe(), [override])
    assert message in str(caught.value)


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match="given twice"):
        apply_overrides(Recipe(), ["name=a", "name=b"])


def test_settings_are_listed_by_dotted_key() -> None:
    settings = list_settings(Recipe())
    assert settings["training.schedule.warmup_steps"] == 0
    assert "training" not in settings


def factors(config: TrainingConfig, seconds: float = 0.0) -> list[float]:
    return [round(schedule_factor(config, step, seconds), 4) for step in range(config.num_steps)]


def test_the_schedule_warms_up_stays_and_decays() -> None:
    config = TrainingConfig(num_steps=10, schedule=ScheduleConfig(warmup_steps=4, decay_steps=4, final_ratio=0.2))
    assert factors(config) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4]
    cosine = TrainingConfig(num_steps=10, schedule=ScheduleConfig(shape="cosine", warmup_steps=2))
    assert factors(cosine)[:3] == [0.5, 1.0, 1.0]
    assert factors(cosine)[6] == 0.5
    assert schedule_factor(cosine, 10, 0.0) == pytest.approx(0.0)
    assert factors(TrainingConfig(num_steps=3, schedule=ScheduleConfig(shape="constant"))) == [1.0] * 3


def test_the_schedule_follows_the_larger_of_steps_and_time() -> None:
    config = TrainingConfig(
        num_steps=100, max_minutes=1.0, time_decay=True, schedule=ScheduleConfig(decay_fraction=0.5)
    )
    assert schedule_factor(config, 0, 45.0) == pytest.approx(0.5)
    assert schedule_factor(config, 75, 15.0) == pytest.approx(0.5)
    assert schedule_factor(config, 0, 90.0) == 0.0


def test_settings_import_no_torch() -> None:
    code = "import sys, sememe.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
