import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from cli.runs import refused, run_here
from sememe.workflows.dry_run import RehearsedPhase, _add_costs
from workflows.smoke_runs import settings, smoke_runs


@pytest.fixture
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smoke_runs(tmp_path_factory.getbasetemp())


def leave_costs(_prepare: object, _stage: object, _config: object, phases: Sequence[RehearsedPhase]) -> object:
    """Stand in for counting the costs of steps, which takes seconds."""
    return phases


def given(folder: Path, part: str) -> list[str]:
    return [word for setting in settings(folder, part) for word in ("--set", setting)]


def test_a_rehearsal_tells_what_the_run_then_does(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[RehearsedPhase] = []

    def count_once(*given: Any) -> list[RehearsedPhase]:
        if not counted:
            counted.extend(_add_costs(*given))
        return counted

    monkeypatch.setattr("sememe.workflows.dry_run._add_costs", count_once)
    words = ["train", "smoke-expert", "--dry-run", *given(runs, "expert")]
    found = json.loads(run_here(capsys, *words, "-o", tmp_path / "run", "--json").out)
    assert not (tmp_path / "run").exists()
    record = json.loads((runs / "expert" / "run.json").read_text())
    assert (found["step"], found["num_shares"], found["inputs"]) == (0, 1, record["inputs"])
    # Two references with two targets each, in latents of 4 channels.
    assert found["batch"]["batch.targets.clean"] == "float32 (4, 4, 3, 4, 4)"
    assert found["batch"]["batch.owners"] == "int64 (4,)"
    kept = runs / "expert" / "checkpoints" / "step_000004"
    average = load_file(kept / "ema.safetensors")
    moments = {key: value for key, value in load_file(kept / "optimizer.safetensors").items() if value.ndim}
    (phase,) = found["phases"]
    num_trained = sum(tensor.numel() for tensor in average.values())
    assert (phase["name"], phase["num_steps"], phase["num_trained"]) == ("main", 4, num_trained)
    num_kept = num_trained + sum(tensor.numel() for tensor in (*average.values(), *moments.values()))
    assert phase["memory"] == 4 * (found["modules"]["transformer"] + num_kept)
    # Matrix products of forward and backward, of two references with two targets each, and a measured time.
    assert phase["cost"]["operations"] > 6 * 4 * num_trained
    assert phase["is_measured"]
    assert not list(runs.glob("**/timed"))
    told = run_here(capsys, *words, "-o", runs / "expert")
    assert told.code == 0
    assert re.search(r"\d s a step, as measured here, blocks not compiled: 4 steps in \d+ seconds\n", told.out)
    assert told.out.startswith(f"smoke-expert goes on at step 4 in {runs / 'expert'}, on cpu\n")
    assert f"phase main: 4 steps, {num_trained:,} parameters trained" in told.out
    names = [f"training.{each}" for each in ("shard=2", "context=2", "checkpoints_activations=true")]
    more = [word for setting in names for word in ("--set", setting)]
    counted.clear()
    spread = json.loads(run_here(capsys, *words, "--json", *more, "-o", runs / "expert").out)
    assert 0 < spread["phases"][0]["cost"]["activations"] < phase["cost"]["activations"]
    # Twice the shares take twice as long at least.
    assert not spread["phases"][0]["is_measured"]
    # Its small layers outside of the blocks stay whole.
    assert 0.5 < spread["phases"][0]["memory"] / phase["memory"] < 0.75

    monkeypatch.setattr("sememe.workflows.dry_run._add_costs", leave_costs)
    rounded = json.loads(run_here(capsys, *words, "--json", "--set", "training.precision=bf16").out)
    backbone = load_file(runs / "backbone" / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    num_rounded = sum(each.numel() for name, each in backbone.items() if "norm" not in name and "table" not in name)
    assert phase["memory"] - rounded["phases"][0]["memory"] == 2 * num_rounded


def test_compiling_where_there_are_no_blocks_is_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["train", "smoke-autoencoder", "--dry-run", "-o", tmp_path, *given(runs, "autoencoder")]
    told = run_here(capsys, *words, "--set", "training.compile=blocks")
    assert "compile=blocks has no effect" in refused(told)


def test_what_would_stop_a_run_stops_its_rehearsal(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sememe.workflows.dry_run._add_costs", leave_costs)
    words = ["train", "smoke-expert", "--dry-run", "-o", runs / "expert", *given(runs, "expert")]
    faster = ["--set", "training.learning_rate=0.5"]
    assert "--allow-changes training.learning_rate" in refused(run_here(capsys, *words, *faster))
    assert run_here(capsys, *words, *faster, "--allow-changes", "training.learning_rate").code == 0
    assert "holds a run already" in refused(run_here(capsys, *words, "--no-resume"))
    record = json.loads((runs / "expert" / "run.json").read_text())
    assert record["settings"]["training.learning_rate"] == "0.0012"


def test_damaged_checkpoints_stop_a_rehearsal(runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(runs / "autoencoder", tmp_path / "run")
    words = ["train", "smoke-autoencoder", "--dry-run", *given(runs, "autoencoder")]
    (tmp_path / "run" / "checkpoints" / "step_000004" / "weights.safetensors").unlink()
    assert "all checkpoints in" in refused(run_here(capsys, *words, "-o", tmp_path / "run"))
    source = tmp_path / "run" / "checkpoints" / "step_000004"
    assert "is not a complete checkpoint" in refused(
        run_here(capsys, *words, "-o", tmp_path / "new", "--init-from", source)
    )
