import subprocess
import sys

import pytest

from sememe.training.config import ScheduleConfig, TrainingConfig
from sememe.training.schedule import schedule_factor


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
