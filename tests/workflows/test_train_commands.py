"""`sememe train`, `precompute`, `assemble` and `recipes`, as they are typed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cli.runs import refused, run_here
from sememe.data.array_cache import ArrayCache
from sememe.records import flatten
from sememe.training import process
from sememe.training.progress import TrainingSummary
from sememe.workflows import train as workflow
from sememe.workflows.systems import qualify_model
from sememe.workflows.train import resolve_training_recipe
from workflows.smoke_runs import settings, smoke_runs


@pytest.fixture
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smoke_runs(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The allocator of the tests' own process stays as it is; what would have been done is kept."""
    calls: list[str] = []
    monkeypatch.setattr(process, "keep_freed_memory", lambda: calls.append("keep"))
    return calls


def given(folder: Path, part: str) -> list[str]:
    return [word for setting in settings(folder, part) for word in ("--set", setting)]


def test_the_commands_of_the_guide(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    """Outputs go to `runs/` below the current folder, and that is where the next recipe looks for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "smoke-autoencoder").symlink_to(runs / "autoencoder")
    on_cpu = ("--set", "training.device=cpu")
    assert run_here(capsys, "precompute", "smoke-latents", "--set", "device=cpu").code == 0
    assert run_here(capsys, "train", "smoke-backbone", *on_cpu).code == 0
    trained = run_here(capsys, "train", "smoke-expert", *on_cpu, "--set", "training.num_steps=2")
    assert trained.code == 0
    assert re.fullmatch(r"complete after 2 steps in [\d.]+ min: runs/smoke-expert/model\n", trained.out)
    assert "smoke-expert, loss " in trained.err
    assert asked == ["keep"] * 3
    made = run_here(capsys, "assemble", "smoke-model", "-o", "made", "--title", "A model")
    assert made.code == 0
    assert made.out.startswith("made: ")
    card = (tmp_path / "made" / "README.md").read_text()
    assert "# A model" in card
    assert "license: apache-2.0" in card
    index = json.loads((tmp_path / "made" / "model_index.json").read_text())
    assert index["generation_defaults"]["num_inference_steps"] == 2


def test_models_by_size_alone_are_those_of_the_system() -> None:
    recipe = resolve_training_recipe("tiny-expert", ["backbone=tiny"])
    assert dict(flatten(recipe))["backbone"] == "video-as-prompt/tiny"
    assert qualify_model("tiny", recipe) == "video-as-prompt/tiny"
    assert qualify_model("runs/tiny", recipe) == "runs/tiny"


def test_a_run_is_gone_on_with(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "smoke-expert", "-o", tmp_path / "run", "--json", *given(runs, "expert")]
    first = json.loads(run_here(capsys, *words, "--set", "training.num_steps=1").out)
    assert "training.num_steps 1, and it is 3 now" in refused(run_here(capsys, *words, "--set", "training.num_steps=3"))
    longer = ["--allow-changes", "training.num_steps"]
    second = json.loads(run_here(capsys, *words, *longer, "--set", "training.num_steps=3").out)
    assert (first["step"], second["step"], second["ending"]) == (1, 3, "finished")
    assert second["num_samples"] == 3 * first["num_samples"]
    assert Path(second["model"], "expert", "config.json").is_file()
    assert "holds a run already" in refused(run_here(capsys, *words, "--no-resume"))
    paused = run_here(
        capsys,
        *words[:4],
        *longer,
        *given(runs, "expert"),
        "--set",
        "training.num_steps=9",
        "--set",
        "training.stop_after_minutes=1e-9",
    )
    assert paused.code == 0
    assert paused.out.startswith("paused after 3 steps")


def test_continuing_from_a_model(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "smoke-autoencoder", "-o", tmp_path / "run", "--init-from", runs / "model", "--max-minutes", "5"]
    done = run_here(capsys, *words, *given(runs, "autoencoder"), "--set", "training.num_steps=1")
    assert done.code == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["init_from"] == str(runs / "model")
    assert record["settings"]["training.max_minutes"] == "5.0"


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_being_stopped(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> TrainingSummary:
        return TrainingSummary(
            step=7,
            num_steps=9,
            num_samples=7,
            seconds=60.0,
            loss=None,
            ending="signal",
            signal_name=name,
            checkpoint=tmp_path / "step_000007",
            model=None,
        )

    monkeypatch.setattr(workflow, "train_recipe", stopped)
    outcome = run_here(capsys, "train", "smoke-expert", "-o", tmp_path)
    assert outcome.code == code
    assert f"stopped by {name} after 7 steps in 1.0 min; the same command goes on from" in outcome.out


def test_precompute_reports(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["precompute", "smoke-latents", "--model-part", runs / "model", "-o", tmp_path / "latents", "--json"]
    settings_ = ["--set", "device=cpu", "--set", "data.num_clips=20"]
    first = json.loads(run_here(capsys, *words, *settings_).out)
    second = json.loads(run_here(capsys, *words, *settings_).out)
    assert (first["num_clips"], first["num_new"]["clean"], second["num_new"]["clean"]) == (20, 20, 0)
    assert first["made_by"]["clean"] == ArrayCache.open(runs / "latents").arrays["clean"].made_by


def test_parts_that_do_not_belong_together(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ["training.device=cpu", "training.num_steps=1", "network.num_start_clips=4"]
    workflow.train_recipe(workflow.resolve_training_recipe("smoke-autoencoder", other), tmp_path / "other")
    folders = {"autoencoder": tmp_path / "other", "backbone": runs / "backbone", "expert": runs / "expert"}
    parts = [word for part, folder in folders.items() for word in ("--set", f"{part}={folder}")]
    message = refused(run_here(capsys, "assemble", "smoke-model", "-o", tmp_path / "made", *parts))
    assert "the backbone" in message
    assert "autoencoder" in message
    assert not (tmp_path / "made").exists()


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    listed = run_here(capsys, "recipes")
    assert listed.out == run_here(capsys, "train", "--list").out
    lines = {line.split()[0]: line.split()[1] for line in listed.out.splitlines()}
    assert (lines["tiny-expert"], lines["tiny-latents"], lines["tiny-model"]) == ("train", "precompute", "assemble")
    assert "tiny-expert" in json.loads(run_here(capsys, "recipes", "--json").out)
    of_one = run_here(capsys, "recipes", "tiny-expert").out.splitlines()
    assert of_one == run_here(capsys, "train", "tiny-expert", "--list").out.splitlines()
    assert "settings.targets_per_reference = 4" in of_one
    assert "expert_blocks = none" in of_one
    assert "training.betas = 0.9,0.98" in of_one


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "expected the name of a recipe, got none; there are tiny-autoencoder, "),
        (["train", "tiny-exprt"], "did you mean tiny-expert"),
        (["train", "tiny-model"], "a recipe for model, which `sememe train` does not run"),
        (["train", "tiny-expert", "--set", "learning_rat=1"], "nearest is training.learning_rate"),
        (["train", "tiny-expert", "--set", "training.compile=all"], "must be one of none, blocks"),
        (["precompute"], "expected the name of a recipe"),
        (["precompute", "tiny-expert"], "which `sememe precompute` does not run"),
        (["precompute", "smoke-latents", "--model-part", "no-such-model"], "is neither"),
        (["assemble", "smoke-model"], "expected the folder to write"),
        (["assemble", "smoke-model", "-o", "made"], "is neither"),
        (["recipes", "tiny"], "did you mean"),
        (["train", "smoke-backbone", "--set", "training.device=cpu"], "runs/smoke-latents holds no cache"),
    ],
)
def test_mistakes(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(run_here(capsys, *words))
    assert not list(tmp_path.glob("*/*"))
