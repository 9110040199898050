from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sememe.errors import RecipeError
from sememe.training.checkpoint import list_checkpoints, load_checkpoint
from sememe.training.config import PhaseConfig, ScheduleConfig, TrainingConfig
from sememe.training.held_out import ItemPicker, choose_held_out, choose_held_out_targets
from sememe.training.loop import train
from sememe.training.progress import NOISE_NAMES, TrainingEvent, TrainingProgress, read_log
from sememe.training.stage import NoiseLosses, StepLoss, make_rng
from sememe.video import Clip
from sememe.video.sheet import SheetRow
from training.small_stage import SmallStage

SCENES = [f"scene {number // 2}" for number in range(40)]
(HELD,) = {SCENES[place] for place in np.flatnonzero(choose_held_out(SCENES))}


class BiasStage(SmallStage):
    """Draws a bias towards the numbers of items: 1 for those that are trained on, 0.2 for those held out."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.items: ItemPicker = ItemPicker(SCENES)
        self.network.head.bias.data.fill_(0.0)

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> tuple[int, Tensor, Tensor]:
        number, tokens, pictures = super().batch(step, generator, device)
        picked = self.items.draw(make_rng(generator), 5)
        values = torch.tensor([0.2 if SCENES[place] == HELD else 1.0 for place in picked])
        return number, tokens, torch.cat([pictures, values.view(5, 1, 1, 1).expand(5, 1, 4, 4)], dim=1)

    def loss(self, batch: tuple[int, Tensor, Tensor], generator: torch.Generator) -> StepLoss:
        number, tokens, pictures = batch
        # A signal is to come in training alone.
        number = number if self.network.training else -1
        result = super().loss((number, tokens, pictures[:, :3]), generator)
        off = (self.network.head.bias - pictures[:, 3, 0, :1]).square().sum(dim=1)
        # What the rest of the network learns weighs nothing, and its statistics and dropout are there all the same.
        return StepLoss(
            total=off.sum() + 0.0 * result.total, num_samples=5, by_noise=NoiseLosses(off, torch.full((5,), 0.6))
        )

    def sample(self, generator: torch.Generator, device: torch.device) -> list[SheetRow]:
        assert not self.network.training
        assert not torch.is_grad_enabled()
        level = int(255 * self.network.head.bias.mean().clamp(0, 1))
        return [SheetRow("", Clip(np.full((2, 8, 8, 3), level, np.uint8), 8.0))]


def make_config(**changes: Any) -> TrainingConfig:
    settings: dict[str, Any] = {
        "num_steps": 12,
        "learning_rate": 0.05,
        "schedule": ScheduleConfig(shape="constant"),
        "ema_decay": 0.5,
        "precision": "fp32",
        "device": "cpu",
        "log_every": 2,
        "save_every": 5,
        "validate_every": 2,
    }
    return TrainingConfig(**(settings | changes))


def read_validations(folder: Path) -> dict[int, float]:
    return {line["step"]: line["validation_loss"] for line in read_log(folder) if "validation_loss" in line}


def test_the_averaged_weights_are_validated_and_the_best_are_kept(tmp_path: Path) -> None:
    seen: list[TrainingEvent] = []
    summary = train(BiasStage(), make_config(), tmp_path, on_event=seen.append)
    found = read_validations(tmp_path)
    assert list(found) == [2, 4, 6, 8, 10, 12]
    record = summary.validation
    assert record is not None
    assert (record.step, record.loss) == (12, found[12])
    assert (record.best_step, record.best_loss) == min(found.items(), key=lambda each: each[1])
    assert 2 < record.best_step < 10, "the loss falls and rises again"
    progress = [event for event in seen if isinstance(event, TrainingProgress)]
    assert progress[-1].validation is not None
    assert progress[-1].validation.step == 10
    # The best checkpoint stays beside the newest two, and is what best/ holds.
    kept = list_checkpoints(tmp_path / "checkpoints")
    assert [path.name for path in kept] == [f"step_{step:06}" for step in (record.best_step, 10, 12)]
    for path, folder in ((kept[0], tmp_path / "best" / "model"), (kept[-1], tmp_path / "model")):
        average = load_checkpoint(path).average
        assert average is not None
        bias = average["network.head.bias"]
        assert torch.equal(load_file(folder / "small.safetensors")["head.bias"], bias)
        loss = float((bias - 0.2).square().sum())
        assert found[int(path.name[-6:])] == pytest.approx(loss, rel=1e-4), (
            "of the averaged weights, on what is held out"
        )
    lines = [line for line in read_log(tmp_path) if "validation_loss" in line]
    assert all(line[f"validation_{NOISE_NAMES[2]}"] == pytest.approx(line["validation_loss"]) for line in lines)
    assert len(list((tmp_path / "samples").glob("step_*.png"))) == len(lines)


def test_validation_changes_nothing_and_goes_on_where_it_was(tmp_path: Path) -> None:
    plain = BiasStage()
    plain.hold_out()
    train(plain, make_config(validate_every=0, save_every=2), tmp_path / "plain")
    train(BiasStage(), make_config(), tmp_path / "whole")
    for _ in range(2):
        # The first call is stopped at a step after which it would have validated.
        last = train(BiasStage(stop_at=3), make_config(prefetch_batches=2), tmp_path / "parts")
    assert last.is_complete
    assert read_validations(tmp_path / "parts") == read_validations(tmp_path / "whole")
    ends = [load_checkpoint(tmp_path / name / "checkpoints" / "step_000012") for name in ("plain", "whole", "parts")]
    for other in ends[1:]:
        assert all(torch.equal(tensor, other.weights[name]) for name, tensor in ends[0].weights.items())
        assert all(torch.equal(tensor, other.optimizer[name]) for name, tensor in ends[0].optimizer.items())
    assert ends[1].state["validation"] == ends[2].state["validation"]


def test_a_phase_that_was_stopped_at_its_end_is_validated(tmp_path: Path) -> None:
    class PhasedStage(BiasStage):
        def enter(self, phase: str) -> None:
            assert phase in ("one", "two")

    phases = tuple(PhaseConfig(name=name, num_steps=3, learning_rate=0.05) for name in ("one", "two"))
    config = TrainingConfig(phases=phases, precision="fp32", device="cpu", validate_every=100)
    train(PhasedStage(), config, tmp_path / "whole")
    stopped = train(PhasedStage(stop_at=2), config, tmp_path / "parts")
    assert (stopped.ending, stopped.step) == ("signal", 3)
    train(PhasedStage(), config, tmp_path / "parts")
    assert list(read_validations(tmp_path / "whole")) == [3, 6]
    assert read_validations(tmp_path / "parts") == read_validations(tmp_path / "whole")


def test_where_the_best_checkpoint_is_lost_another_becomes_the_best(tmp_path: Path) -> None:
    before = train(BiasStage(), make_config(), tmp_path).validation
    assert before is not None
    for step in (before.best_step, 10):
        (tmp_path / "checkpoints" / f"step_{step:06}" / "weights.safetensors").write_bytes(b"")
    found = train(BiasStage(), make_config(), tmp_path).validation
    assert found == replace(before, best_step=12, best_loss=before.loss)
    further = train(BiasStage(), make_config(num_steps=14), tmp_path)
    assert further.validation is not None
    assert further.is_complete


def test_a_twentieth_of_the_scenes_is_held_out_whole() -> None:
    scenes = [f"{number % 100}" for number in range(300)]
    held = choose_held_out(scenes)
    assert len({scene for scene, is_held in zip(scenes, held, strict=True) if is_held}) == 5
    assert held.sum() == 15
    order = np.random.default_rng(0).permutation(300)
    assert np.array_equal(choose_held_out([scenes[place] for place in order]), held[order])
    picker = ItemPicker(scenes)
    other = picker.hold_out()
    assert not held[picker.draw(np.random.default_rng(0), 1000)].any()
    assert set(other.draw(np.random.default_rng(0), 1000)) == set(np.flatnonzero(held))
    assert other.draw(np.random.default_rng(0), 4, below=0).size == 0
    with pytest.raises(RecipeError, match="at least two scenes, to hold one out, got 1"):
        ItemPicker(["a", "a"]).hold_out()
    with pytest.raises(RecipeError, match="validate_every has no effect on the stage small"):
        SmallStage().hold_out()


def test_conditions_keep_two_scenes_to_be_trained_on() -> None:
    scenes = [str(number) for number in range(6)] * 2
    (one,) = {scene for scene, held in zip(scenes, choose_held_out(scenes), strict=True) if held}
    # The condition "few" is filmed in two scenes, one of which would be held out.
    conditions = ["many"] * 6 + [
        "few" if scene in (one, scenes[scenes.index(one) - 1]) else "some" for scene in scenes[6:]
    ]
    held = choose_held_out_targets(scenes, conditions)
    assert [(scenes[place], conditions[place]) for place in np.flatnonzero(held)] == [(one, "many")]
    with pytest.raises(RecipeError, match="at least 3 scenes"):
        choose_held_out_targets(["a", "b"] * 3, ["melt", "melt", "jump", "jump", "spin", "spin"])
