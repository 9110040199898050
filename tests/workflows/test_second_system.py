"""A second system joins the shared processes and the command line by its record alone."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli.runs import refused, run_here
from sememe.compute.loading_settings import LoadingSettings
from sememe.errors import InputError, OutputError
from sememe.files import hash_file
from sememe.video import Clip, read_clip, write_clip
from sememe.workflows.generate import GenerationRequest, generate, generate_all
from sememe.workflows.systems import SYSTEMS
from workflows.toy_system import TOY, Light, ToyInputs


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYSTEMS, "toy", TOY)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    Light(0.5).save(tmp_path / "model")
    return tmp_path / "model"


def test_text_a_source_and_seconds_make_a_video_and_a_plan(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = tmp_path / "source.mp4", tmp_path / "outputs"
    write_clip(Clip(np.full((20, 16, 32, 3), 64, np.uint8), 4.0), source)
    folder.mkdir()
    files = ("-o", folder / "out.mp4", "--save-plan", folder / "plan.json", "--source", source, "--model", model)
    outcome = run_here(capsys, "generate", "toy", "dawn, noon", "--seconds", 2, "--light", 0.5, *files, "--json")
    assert outcome.code == 0, outcome.err
    clip = read_clip(folder / "out.mp4")
    assert (clip.num_frames, clip.size, clip.fps) == (8, (16, 32), 4.0)
    assert abs(clip.frames.mean() - (64 + 0.25 * 255)) < 3
    assert json.loads((folder / "plan.json").read_text()) == ["dawn", "noon"]
    document = json.loads(outcome.out)
    assert document == json.loads((folder / "out.json").read_text())
    assert document["output"]["plan"] == {
        "path": str(folder / "plan.json"),
        "sha256": hash_file(folder / "plan.json"),
    }
    assert (document["system"], document["prompt"], document["settings"]["seconds"]) == ("toy", "dawn, noon", 2.0)
    assert document["inputs"]["source"][0]["num_frames"] == 20
    assert document["exactness"]["label"] == "exact"
    # Made again from its record, it leaves the files alone that were written.
    (folder / "plan.json").write_text("mine")
    again = run_here(capsys, "generate", "toy", "--like", folder / "out.json", "-o", folder / "again.mp4")
    assert again.code == 0, again.err
    assert (folder / "plan.json").read_text() == "mine"


def test_each_seed_has_files_of_its_own(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("-o", tmp_path / "out.mp4", "--save-plan", tmp_path / "plan.json", "--model", model)
    assert run_here(capsys, "generate", "toy", "noon", "--seed", 1, "--seed", 2, *files).code == 0
    assert sorted(path.name for path in tmp_path.glob("plan*")) == ["plan-1.json", "plan-2.json"]
    inputs = ToyInputs(prompt="noon", save_plan=tmp_path / "plan.json")
    both = [GenerationRequest(inputs=inputs, output=tmp_path / name, model=str(model)) for name in ("a.mp4", "b.mp4")]
    with pytest.raises(InputError, match="a different name for each result"):
        next(iter(generate_all(both)))


def test_text_alone_makes_a_video(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.mp4"
    sheet = ("--sheet", tmp_path / "sheet.png")
    assert run_here(capsys, "generate", "toy", "noon", "-o", output, "--model", model, *sheet).code == 0
    assert read_clip(output).num_frames == 4
    assert (tmp_path / "sheet.png").is_file()


def test_a_file_that_cannot_be_written_leaves_none(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(ToyInputs, "write_extra", fail)
    inputs = ToyInputs(prompt="noon", save_plan=tmp_path / "plan.json")
    with pytest.raises(OutputError, match="full"):
        generate(GenerationRequest(inputs=inputs, output=tmp_path / "out.mp4", model=str(model)))
    assert os.listdir(tmp_path) == ["model"]


def test_two_outputs_of_one_name_are_refused(model: Path, tmp_path: Path) -> None:
    inputs = ToyInputs(prompt="noon", save_plan=tmp_path / "out.json")
    with pytest.raises(OutputError, match="different files"):
        generate(GenerationRequest(inputs=inputs, output=tmp_path / "out.mp4", model=str(model)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loading": LoadingSettings(device="cpu", vram=8)}, "no memory plans for Toy"),
        ({"loading": LoadingSettings(device="cpu", expert="e")}, "Toy has no experts"),
        ({"influence": True}, "influence has no meaning"),
    ],
)
def test_what_it_does_not_have_is_refused(
    changes: dict[str, object], message: str, model: Path, tmp_path: Path
) -> None:
    request = {"inputs": ToyInputs(prompt="noon"), "output": tmp_path / "out.mp4", "model": str(model)}
    with pytest.raises(InputError, match=message):
        generate(GenerationRequest(**(request | changes)))  # type: ignore[arg-type]


def test_it_is_trained_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "toy-light" in run_here(capsys, "recipes").out
    run, report = tmp_path / "run", tmp_path / "report.json"
    assert run_here(capsys, "train", "toy-light", "-o", run).code == 0
    levels = []
    for folder in (run / "start", run / "model"):
        arguments = ("--model", folder, "--generations", 2, "--rows", "light", "--device", "cpu", "-o", report)
        assert run_here(capsys, "evaluate", "toy", *arguments, "--set", "seconds=0.5").code != 0
        outcome = run_here(capsys, "evaluate", "toy", *arguments, "--set", "num_inference_steps=1", "--json")
        assert outcome.code == 0, outcome.err
        row = json.loads(outcome.out)["rows"]["light"]
        assert row == json.loads(report.read_text())["rows"]["light"]
        levels.append((row["cases"][0]["level"] > 0.4, row["summary"]["num_right"]))
        report.unlink()
    assert levels == [(False, 0), (True, 2)]
    assert "expected a system" in refused(run_here(capsys, "evaluate", "nothing"))


def test_what_is_not_measured_yet_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SYSTEMS, "toy", replace(TOY, evaluation=None, generation=None))
    assert "Toy has none" in refused(run_here(capsys, "evaluate", "toy"))
    assert "toy" not in run_here(capsys, "generate", "--help").out
