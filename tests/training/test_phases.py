import dataclasses
import math
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sememe.errors import RecipeError
from sememe.training.checkpoint import find_latest, load_checkpoint
from sememe.training.config import PhaseConfig, ScheduleConfig, TrainingConfig
from sememe.training.loop import train
from sememe.training.progress import read_log
from sememe.training.stage import StepLoss
from training.small_stage import SmallStage

HEAD = PhaseConfig(name="head", num_steps=3, learning_rate=1e-2, schedule=ScheduleConfig(shape="constant"))
BOTH = PhaseConfig(
    name="both", num_steps=4, learning_rate=1e-3, schedule=ScheduleConfig(warmup_steps=2, shape="constant")
)


class PhasedStage(SmallStage):
    """Trains the head alone, then the hidden layer with it; counts its batches."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.phase = ""
        self.fed: list[tuple[str, int]] = []
        self.count = torch.zeros(())

    def enter(self, phase: str) -> None:
        if phase not in ("head", "both"):
            raise RecipeError(f"the stage small has no phase {phase!r}")
        self.phase = phase
        self.network.requires_grad_(requires_grad=False)
        self.network.head.requires_grad_(requires_grad=True)
        self.network.hidden.requires_grad_(requires_grad=phase == "both")

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> tuple[int, Tensor, Tensor]:
        self.fed.append((self.phase, step))
        return super().batch(step, generator, device)

    def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
        self.count += 1
        return super().loss(batch, generator)

    def state(self) -> dict[str, Tensor]:
        return {"count": self.count}


def make_config(**changes: Any) -> TrainingConfig:
    settings: dict[str, Any] = {"phases": (HEAD, BOTH), "precision": "fp32", "device": "cpu", "log_every": 1}
    return TrainingConfig(**(settings | changes))


def read_checkpoint(folder: Path) -> Any:
    path = find_latest(folder / "checkpoints")
    assert path is not None
    return load_checkpoint(path)


def test_each_phase_has_its_parameters_steps_and_learning_rate(tmp_path: Path) -> None:
    stage = PhasedStage()
    before = stage.network.hidden.weight.detach().clone()
    summary = train(stage, make_config(prefetch_batches=2, save_every=3, keep_checkpoints=3), tmp_path)
    assert (summary.step, summary.num_steps) == (7, 7)
    # Batches are numbered over the run, and none is made ahead of its phase.
    # They are made in threads, whose order is free.
    assert sorted(stage.fed, key=itemgetter(1)) == [("head", step) for step in range(3)] + [
        ("both", step) for step in range(3, 7)
    ]
    log = read_log(tmp_path)
    assert [line["phase"] for line in log] == ["head"] * 3 + ["both"] * 4
    assert [line["learning_rate"] for line in log] == pytest.approx([1e-2] * 3 + [5e-4] + [1e-3] * 3)
    end = read_checkpoint(tmp_path)
    assert (end.state["phase"], end.state["phase_step"], end.step) == ("both", 4, 7)
    assert float(end.weights["stage/count"]) == 7
    steps = {name: float(value) for name, value in end.optimizer.items() if name.endswith("/step")}
    assert steps["network.head.weight/step"] == 7
    assert steps["network.hidden.weight/step"] == 4
    middle = load_checkpoint(tmp_path / "checkpoints" / "step_000003")
    assert torch.equal(middle.weights["network.hidden.weight"], before)
    assert not torch.equal(end.weights["network.hidden.weight"], before)
    assert middle.average is not None
    assert middle.average.keys() < end.average.keys()


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_a_run_stopped_in_any_phase_resumes_bit_by_bit(stop_at: int, tmp_path: Path) -> None:
    train(PhasedStage(), make_config(), tmp_path / "straight")
    summary = train(PhasedStage(stop_at=stop_at), make_config(), tmp_path / "parts")
    assert (summary.ending, summary.step) == ("signal", stop_at + 1)
    train(PhasedStage(), make_config(), tmp_path / "parts")
    one, two = read_checkpoint(tmp_path / "straight"), read_checkpoint(tmp_path / "parts")
    for a, b in ((one.weights, two.weights), (one.average, two.average), (one.optimizer, two.optimizer)):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_phases_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    train(PhasedStage(stop_at=4), make_config(), tmp_path)
    shorter = PhaseConfig(name="head", num_steps=2)
    with pytest.raises(RecipeError, match="at step 2 of phase 'both'"):
        train(PhasedStage(), make_config(phases=(shorter, BOTH)), tmp_path)
    later = dataclasses.replace(BOTH, learning_rate_factors={"*nothing*": 2.0})
    with pytest.raises(RecipeError, match=r"no trained parameter matches '\*nothing\*'"):
        train(PhasedStage(), make_config(phases=(HEAD, later)), tmp_path / "factors")
    assert not (tmp_path / "factors" / "log.jsonl").exists()
    with pytest.raises(RecipeError, match="no phase 'head'"):
        train(SmallStage(), make_config(), tmp_path / "other")
    with pytest.raises(RecipeError, match="differ in name"):
        make_config(phases=(HEAD, HEAD))
    with pytest.raises(RecipeError, match="num_steps has no effect"):
        make_config(num_steps=5)
    with pytest.raises(RecipeError, match="no effect on the schedule shape 'constant'"):
        make_config(time_decay=True, max_minutes=1.0)


@pytest.mark.parametrize("stop_at", [2, 5, None])
def test_the_last_phase_follows_the_clock(stop_at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]

    class OneSecondSteps(PhasedStage):
        def batch(self, step: int, generator: torch.Generator, device: torch.device) -> tuple[int, Tensor, Tensor]:
            seconds[0] += 1.0
            return super().batch(step, generator, device)

    monkeypatch.setattr("sememe.training.loop.time.monotonic", lambda: seconds[0])
    falls = PhaseConfig(name="both", num_steps=10**6, learning_rate=1e-3, schedule=ScheduleConfig(shape="cosine"))
    config = make_config(phases=(HEAD, falls), time_decay=True, max_minutes=11 / 60)
    if stop_at is not None:
        train(OneSecondSteps(stop_at=stop_at), config, tmp_path)
    summary = train(OneSecondSteps(), config, tmp_path)
    assert (summary.ending, summary.step) == ("budget", 11)
    expected = [1e-2] * 3 + [5e-4 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert [line["learning_rate"] for line in read_log(tmp_path)] == pytest.approx(expected, rel=1e-4)


def test_an_average_begins_with_the_training_of_its_parameter(tmp_path: Path) -> None:
    stage = PhasedStage()
    train(stage, make_config(ema_decay=0.9999, phases=(HEAD, PhaseConfig(name="both", num_steps=1))), tmp_path)
    end = read_checkpoint(tmp_path)
    middle = PhasedStage().network.hidden.weight
    # The first update counts for 9 of 10, at whatever step of the run it comes.
    expected = 0.1 * middle + 0.9 * end.weights["network.hidden.weight"]
    torch.testing.assert_close(end.average["network.hidden.weight"], expected.detach())


def test_modules_may_share_parameters(tmp_path: Path) -> None:
    class SharingStage(SmallStage):
        def modules(self) -> dict[str, nn.Module]:
            return {"network": self.network, "tail": nn.ModuleList([self.network.head, self.network.statistics])}

    config = TrainingConfig(num_steps=4, precision="fp32", device="cpu", log_every=1)
    train(SharingStage(), config, tmp_path / "straight")
    train(SharingStage(stop_at=1), config, tmp_path / "parts")
    train(SharingStage(), config, tmp_path / "parts")
    train(SmallStage(), config, tmp_path / "alone")
    one, two, alone = (read_checkpoint(tmp_path / name) for name in ("straight", "parts", "alone"))
    assert one.weights.keys() == alone.weights.keys()
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert all(torch.equal(one.weights[name], alone.weights[name]) for name in one.weights)
