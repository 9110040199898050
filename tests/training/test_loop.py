import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sememe.errors import InputError, ModelError, RecipeError
from sememe.training.checkpoint import Checkpoint, find_latest, list_checkpoints, load_checkpoint
from sememe.training.checkpoint_writer import CheckpointWriter
from sememe.training.config import ScheduleConfig, TrainingConfig
from sememe.training.loop import train
from sememe.training.progress import CheckpointSaved, TrainingEvent, TrainingProgress, read_log
from sememe.training.stage import NoiseLosses, StepLoss
from training.small_stage import SmallStage


def make_config(**changes: Any) -> TrainingConfig:
    settings: dict[str, Any] = {
        "num_steps": 8,
        "learning_rate": 1e-2,
        "schedule": ScheduleConfig(warmup_steps=2),
        "precision": "fp32",
        "device": "cpu",
        "log_every": 1,
        "save_every": 100,
        "seed": 3,
    }
    return TrainingConfig(**(settings | changes))


def assert_same_run(first: Path, second: Path) -> None:
    one, two = (load_checkpoint(find_latest(folder / "checkpoints") or folder) for folder in (first, second))
    assert one.step == two.step
    for a, b in ((one.weights, two.weights), (one.average, two.average), (one.optimizer, two.optimizer)):
        assert a is not None
        assert b is not None
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), name
    losses = [
        [(line["step"], line["loss"], line["grad_norm"]) for line in read_log(folder)] for folder in (first, second)
    ]
    assert losses[0] == losses[1]


def test_batches_that_come_again_have_other_noise(tmp_path: Path) -> None:
    seen: list[tuple[torch.Tensor, float]] = []

    class Watched(SmallStage):
        def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
            found = super().loss(batch, generator)
            seen.append((batch[1], float(found.metrics["noise"])))
            return found

    train(Watched(), make_config(num_steps=6, repeat_after=3), tmp_path)
    tokens, noise = zip(*seen, strict=True)
    assert all(torch.equal(tokens[place], tokens[place + 3]) for place in range(3))
    assert not torch.equal(tokens[0], tokens[1])
    assert len(set(noise)) == 6


def test_training_lowers_the_loss_and_exports_the_average(tmp_path: Path) -> None:
    events: list[TrainingEvent] = []
    summary = train(SmallStage(), make_config(num_steps=60), tmp_path, on_event=events.append)
    log = read_log(tmp_path)
    assert summary.is_complete
    assert summary.ending == "finished"
    assert (summary.step, summary.num_samples) == (60, 300)
    assert [line["step"] for line in log] == list(range(1, 61))
    assert sum(line["loss"] for line in log[-10:]) < sum(line["loss"] for line in log[:10])
    assert log[0]["one"] == 1.0
    progress = [event for event in events if isinstance(event, TrainingProgress)]
    assert progress[-1].seconds_left == 0.0
    assert progress[-1].loss == summary.loss
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [60]
    assert summary.model is not None
    exported = load_file(summary.model / "small.safetensors")
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "step_000060")
    assert checkpoint.average is not None
    assert torch.equal(exported["head.weight"], checkpoint.average["network.head.weight"])
    assert not torch.equal(exported["head.weight"], checkpoint.weights["network.head.weight"])


def test_parameters_that_no_batch_reaches_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Alternating(SmallStage):
        """Trains one more parameter in every second step, and another one never."""

        def __init__(self) -> None:
            super().__init__()
            self.sometimes = torch.nn.Parameter(torch.ones(1))
            self.network.register_parameter("sometimes", self.sometimes)
            self.network.register_parameter("never", torch.nn.Parameter(torch.ones(1)))

        def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
            found = super().loss(batch, generator)
            return replace(found, total=found.total + self.sometimes.sum()) if batch[0] % 2 else found

    train(Alternating(), make_config(num_steps=19), tmp_path / "short")
    assert not caplog.messages
    train(Alternating(), make_config(num_steps=20), tmp_path / "long")
    assert caplog.messages == ["1 of 11 parameters got no gradient in 20 steps, such as network.never"]


def test_weights_after_the_export_are_the_trained_ones(tmp_path: Path) -> None:
    stage = SmallStage()
    train(stage, make_config(), tmp_path)
    kept = load_checkpoint(tmp_path / "checkpoints" / "step_000008").weights
    assert torch.equal(stage.network.head.weight, kept["network.head.weight"])


@pytest.mark.parametrize("changes", [{"log_every": 3}, {"optimizer": "muon"}, {"num_shares": 2, "precision": "bf16"}])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    train(SmallStage(), make_config(**changes), tmp_path / "straight")
    summary = train(SmallStage(stop_at=3), make_config(**changes), tmp_path / "parts")
    assert (summary.ending, summary.signal_name, summary.step) == ("signal", "SIGTERM", 4)
    assert summary.model is None
    train(SmallStage(), make_config(**changes), tmp_path / "parts")
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.parametrize(("capabilities", "is_bf16"), [({"avx2": True}, False), ({"avx512_bf16": True}, True)])
def test_precision_auto_is_bf16_where_the_cpu_has_instructions_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], is_bf16: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    train(SmallStage(), make_config(precision="auto"), tmp_path / "auto")
    train(SmallStage(), make_config(precision="bf16" if is_bf16 else "fp32"), tmp_path / "said")
    assert_same_run(tmp_path / "said", tmp_path / "auto")
    train(SmallStage(), make_config(precision="fp32" if is_bf16 else "bf16"), tmp_path / "other")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "other", tmp_path / "auto")


def test_a_run_killed_while_saving_goes_on_from_the_last_complete_checkpoint(tmp_path: Path) -> None:
    train(SmallStage(), make_config(save_every=2), tmp_path / "straight")
    parts = tmp_path / "parts"
    train(SmallStage(stop_at=5), make_config(save_every=2), parts)
    checkpoints = parts / "checkpoints"
    assert [path.name for path in list_checkpoints(checkpoints)] == ["step_000004", "step_000006"]
    # A kill in the middle of a save leaves a temporary folder; a failing disk may leave a cut file.
    shutil.copytree(checkpoints / "step_000006", checkpoints / ".step_000008.writing-1")
    (checkpoints / ".step_000008.writing-1" / "manifest.json").unlink()
    weights = checkpoints / "step_000006" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with (parts / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')
    stage = SmallStage()
    train(stage, make_config(save_every=2), parts)
    assert stage.batches == [4, 5, 6, 7]
    assert_same_run(tmp_path / "straight", parts)
    assert not list(checkpoints.glob(".*"))


def test_batches_made_ahead_change_nothing(tmp_path: Path) -> None:
    train(SmallStage(), make_config(), tmp_path / "plain")
    train(SmallStage(), make_config(prefetch_batches=3), tmp_path / "ahead")
    assert_same_run(tmp_path / "plain", tmp_path / "ahead")


def test_the_seed_matters(tmp_path: Path) -> None:
    train(SmallStage(), make_config(), tmp_path / "one")
    train(SmallStage(), make_config(seed=4), tmp_path / "two")
    assert read_log(tmp_path / "one")[0]["loss"] != read_log(tmp_path / "two")[0]["loss"]


def test_the_callers_random_state_and_threads_are_left_alone(tmp_path: Path) -> None:
    stage = SmallStage()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    num_threads = torch.get_num_threads()
    train(stage, make_config(num_threads=num_threads + 1), tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == num_threads


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    stage = SmallStage(break_at=5)
    with pytest.raises(RecipeError, match="not finite at step 5;"):
        train(stage, make_config(save_every=2), tmp_path)
    assert all(torch.isfinite(value).all() for value in stage.network.parameters())
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step_000002", "step_000004"]
    assert not (tmp_path / "model").exists()


class Clock:
    """A clock that moves on by a second with every batch."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def make_stage(self) -> SmallStage:
        clock = self

        class OneSecondSteps(SmallStage):
            def batch(self, step: int, generator: torch.Generator, device: torch.device) -> Any:
                clock.seconds += 1.0
                return super().batch(step, generator, device)

        return OneSecondSteps()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("sememe.training.loop.time.monotonic", lambda: clock.seconds)
    return clock


def test_a_spent_budget_completes_the_run_with_a_complete_decay(tmp_path: Path, clock: Clock) -> None:
    config = make_config(num_steps=10**6, max_minutes=20 / 60, time_decay=True, schedule=ScheduleConfig(shape="cosine"))
    summary = train(clock.make_stage(), config, tmp_path)
    log = read_log(tmp_path)
    assert (summary.ending, summary.step, summary.seconds) == ("budget", 20, 20.0)
    assert summary.model is not None
    assert log[-1]["learning_rate"] < 0.01 * log[0]["learning_rate"]
    again = train(clock.make_stage(), config, tmp_path)
    assert (again.ending, again.step) == ("budget", summary.step)


def test_a_budget_that_is_spent_while_saving_does_not_prolong_the_run(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowWriter(CheckpointWriter):
        def begin(self, checkpoint: Checkpoint, best: int | None = None) -> None:
            super().begin(checkpoint, best)
            clock.seconds += 0.5

    monkeypatch.setattr("sememe.training.loop.CheckpointWriter", SlowWriter)
    # The second step is saved at 2.5 s, the budget ends at 2.8 s, and the save at 3.0 s.
    config = make_config(num_steps=10**6, max_minutes=2.8 / 60, save_every=1)
    summary = train(clock.make_stage(), config, tmp_path)
    assert (summary.ending, summary.step) == ("budget", 2)
    assert train(clock.make_stage(), config, tmp_path).step == 2


def test_a_limit_of_minutes_stops_one_call_only(tmp_path: Path, clock: Clock) -> None:
    limited = make_config(num_steps=10**6, stop_after_minutes=3 / 60)
    first = train(clock.make_stage(), limited, tmp_path)
    second = train(clock.make_stage(), limited, tmp_path)
    assert first.ending == second.ending == "paused"
    assert (first.step, second.step, second.seconds) == (3, 6, 6.0)


def test_shares_count_by_their_weight(tmp_path: Path) -> None:
    class ScaledStage(SmallStage):
        """Shares of weights 1 and 3, or both as one batch of weight 4."""

        def __init__(self, weights: list[float]) -> None:
            super().__init__()
            self.network.eval()
            self.weights = weights

        def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
            weights = [self.weights[(len(self.batches) - 1) % 2]] if len(self.weights) == 2 else [1.0, 3.0]
            bias = self.network.head.bias
            total = torch.stack([weight * (bias - weight).square().sum() for weight in weights]).sum()
            return StepLoss(total=total, num_samples=len(weights), weight=sum(weights), metrics={"weight": weights[-1]})

    apart = train(ScaledStage([1.0, 3.0]), make_config(num_shares=2), tmp_path / "apart")
    together = train(ScaledStage([4.0]), make_config(), tmp_path / "together")
    assert apart.num_samples == together.num_samples == 16
    one, two = (load_file(tmp_path / name / "model" / "small.safetensors") for name in ("apart", "together"))
    torch.testing.assert_close(one["head.bias"], two["head.bias"])
    logs = [read_log(tmp_path / name) for name in ("apart", "together")]
    assert [line["loss"] for line in logs[0]] == pytest.approx([line["loss"] for line in logs[1]])
    assert logs[0][0]["weight"] == (1.0 + 3.0 * 3.0) / 4.0


def test_losses_are_told_by_level_of_noise(tmp_path: Path) -> None:
    class NoisyStage(SmallStage):
        def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
            by_noise = NoiseLosses(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 1.0]))
            return replace(super().loss(batch, generator), by_noise=by_noise)

    seen: list[TrainingEvent] = []
    train(NoisyStage(), make_config(num_steps=2, log_every=2), tmp_path, on_event=seen.append)
    lines = read_log(tmp_path)
    # Where no sample had so much noise, there is no loss to tell.
    assert [{key: line[key] for key in line if "noise_" in key} for line in lines] == [
        {"loss_noise_0_25": 2.0, "loss_noise_75_100": 5.0}
    ] * len(lines)
    assert isinstance(seen[0], TrainingProgress)
    assert "loss_noise_0_25" not in seen[0].metrics, "cards tell the metrics of a run"
    assert seen[0].memory_bytes is None or seen[0].memory_bytes > 50e6


def test_a_run_can_begin_with_the_weights_of_another(tmp_path: Path) -> None:
    train(SmallStage(), make_config(), tmp_path / "first")
    stage = SmallStage()
    start: dict[str, torch.Tensor] = {}

    def note(event: TrainingEvent) -> None:
        start.setdefault("weight", stage.network.head.weight.detach().clone())

    config = make_config(learning_rate=1e-12, num_steps=1, ema_decay=0.0, weight_decay=0.0)
    train(stage, config, tmp_path / "second", init_from=tmp_path / "first", on_event=note)
    average = load_checkpoint(tmp_path / "first" / "checkpoints" / "step_000008").average
    assert average is not None
    torch.testing.assert_close(start["weight"], average["network.head.weight"], atol=1e-6, rtol=0)


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    train(SmallStage(), make_config(num_steps=2), tmp_path)
    with pytest.raises(RecipeError, match="holds checkpoints already"):
        train(SmallStage(), make_config(), tmp_path, resume="never")
    with pytest.raises(RecipeError, match="optimizer adamw, not muon"):
        train(SmallStage(), make_config(optimizer="muon"), tmp_path)
    other = SmallStage()
    other.network.head = torch.nn.Linear(16, 3, bias=False)
    with pytest.raises(ModelError, match=r"has also network\.head\.bias"):
        train(other, make_config(), tmp_path)
    other.name = "other"
    with pytest.raises(ModelError, match="is of stage small, not other"):
        train(other, make_config(), tmp_path)
    with pytest.raises(ModelError, match="init_from must be a checkpoint"):
        train(SmallStage(), make_config(), tmp_path / "new", init_from=tmp_path / "nowhere")
    (tmp_path / "checkpoints" / "step_000002" / "state.json").unlink()
    with pytest.raises(ModelError, match=r"all checkpoints in .* are damaged"):
        train(SmallStage(), make_config(), tmp_path)


def test_settings_that_cannot_take_effect_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="checkpoints_activations has no effect"):
        train(SmallStage(), make_config(checkpoints_activations=True), tmp_path)
    with pytest.raises(RecipeError, match="compile=blocks has no effect"):
        train(SmallStage(), make_config(compile="blocks"), tmp_path)
    with pytest.raises(RecipeError, match=r"training\.context to divide the number of processes, 1, got 2"):
        train(SmallStage(), make_config(context=2), tmp_path)
    with pytest.raises(InputError, match="device of this machine, got 'abacus'"):
        train(SmallStage(), make_config(device="abacus"), tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device of this machine, got 'cuda'"):
            train(SmallStage(), make_config(device="cuda"), tmp_path)
    frozen = SmallStage()
    frozen.network.requires_grad_(requires_grad=False)
    with pytest.raises(RecipeError, match="no parameter to train"):
        train(frozen, make_config(), tmp_path)
