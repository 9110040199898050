"""The verbs translate faithfully: flags into requests, results into lines or JSON."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from cli.runs import refused, run_here
from model_folders import save_model
from sememe.checkpoints import zoo
from sememe.workflows import demo, generate, parity
from sememe.workflows.demo import DemoPair, DemoRequest, DemoResult
from sememe.workflows.generate import VideoAsPromptRequest, VideoAsPromptResult
from sememe.workflows.parity import ParityResult


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[VideoAsPromptRequest]:
    """The requests that reach the workflow, which does nothing."""
    seen: list[VideoAsPromptRequest] = []

    def note(request: VideoAsPromptRequest, _: Any) -> VideoAsPromptResult:
        seen.append(request)
        return VideoAsPromptResult(request.output, request.output.with_suffix(".json"), None, 7, {"seed": 7})

    monkeypatch.setattr(generate, "generate_video_as_prompt", note)
    return seen


def test_few_flags_leave_everything_to_the_model(
    requests: list[VideoAsPromptRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--reference", "r.mp4", "--image", "i.png", "-o", "out.mp4"]
    outcome = run_here(capsys, "generate", "video-as-prompt", *arguments)
    assert (outcome.code, outcome.out, outcome.err) == (0, "out.mp4\n", "")
    assert requests == [
        VideoAsPromptRequest(references=(Path("r.mp4"),), image=Path("i.png"), output=Path("out.mp4"), model="tiny")
    ]


def test_every_flag_reaches_the_workflow(
    requests: list[VideoAsPromptRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    flags: dict[str, Any] = {
        "--prompt": "p",
        "--negative-prompt": "n",
        "--model": "m",
        "--seed": 3,
        "--steps": 4,
        "--num-frames": 9,
        "--height": 32,
        "--width": 48,
        "--fps": 12.5,
        "--guidance-scale": 2.0,
        "--reference-guidance-scale": 3.0,
        "--reference-sampling": "first",
        "--batching": "batched",
        "--autocast": "bfloat16",
        "--device": "cpu",
        "--dtype": "float32",
        "--sheet": "s.png",
        "--last-image": "l.png",
        "--num-reference-frames": 25,
        "--negative-reference": "c.mp4",
        "--reference-strength": 0.5,
        "--reference-refresh": 5,
        "--official-quirk": "stretched_frames",
        "--expert": "e",
        "--revision": "main",
        "--reference-downscale": 2,
        "--reference-positions": "spread",
        "--text-keys": "recomputed",
        "--attention": "native",
        "--vram": 24.0,
        "--storage": "fp8",
    }
    arguments = [part for flag in flags.items() for part in flag]
    arguments += ["--guidance-interval", "0.25", "1"]
    arguments += ["--reference", "a.mp4", "--reference", "b.mp4", "--reference-prompt", "x", "--reference-prompt", "y"]
    outcome = run_here(
        capsys,
        "generate",
        "video-as-prompt",
        *arguments,
        "--image",
        "i.png",
        "--output",
        "o.mp4",
        "--influence",
        "--approximate",
        "--use-dynamic-cfg",
        "--compile",
        "--json",
    )
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out) == {"seed": 7}
    (request,) = requests
    untouched = {
        field.name
        for field in dataclasses.fields(request)
        if field.default is not dataclasses.MISSING and getattr(request, field.name) == field.default
    }
    assert untouched == set()
    assert request.references == (Path("a.mp4"), Path("b.mp4"))
    assert request.reference_prompts == ("x", "y")
    assert request.guidance_interval == (0.25, 1.0)
    assert (request.num_inference_steps, request.fps, request.sheet) == (4, 12.5, Path("s.png"))


def test_models_are_listed_for_people_and_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "WEIGHTS_FOLDER", tmp_path)
    assert "no model" in run_here(capsys, "models").err
    assert json.loads(run_here(capsys, "models", "--json").out) == []
    save_model(tmp_path / "random")
    text = run_here(capsys, "models").out
    assert text.startswith("random  (video-as-prompt; 48x32, 5 frames; 0.")
    assert "license apache-2.0; source: made by a test" in text
    (record,) = json.loads(run_here(capsys, "models", "--json").out)
    assert (record["name"], record["num_frames"], record["folder"]) == ("random", 5, str(tmp_path / "random"))
    assert record["num_parameters"] > 1000


@pytest.mark.parametrize("ok", [True, False])
def test_parity_prints_one_line_and_exits_by_the_outcome(
    ok: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = ParityResult("forward", "wan", 4e-7, 1e-4, ok=ok)
    monkeypatch.setattr(parity, "check_parity", lambda _: result)
    outcome = run_here(capsys, "check-parity", tmp_path)
    assert outcome.code == (0 if ok else 1)
    assert outcome.out.count("\n") == 1
    assert json.loads(outcome.out) == result.to_document()


def test_parity_refuses_other_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected a folder of parity vectors" in refused(run_here(capsys, "check-parity", tmp_path))


def test_the_demo_tells_where_everything_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[DemoRequest] = []

    def note(request: DemoRequest, _: Any) -> DemoResult:
        requests.append(request)
        folder = request.output_dir
        pair = DemoPair("melt", *(folder / name for name in ("reference.mp4", "image.png", "result.mp4")))
        return DemoResult((pair,), folder / "sheet.png")

    monkeypatch.setattr(demo, "run_demo", note)
    lines = run_here(capsys, "demo").out.splitlines()
    assert lines[0].split() == ["reference", "demo/reference.mp4", "(melt)"]
    assert lines[-1].split() == ["sheet", "demo/sheet.png"]
    document = json.loads(run_here(capsys, "demo", "--output-dir", "d", "--model", "m", "--seed", 3, "--json").out)
    assert document["sheet"] == "d/sheet.png"
    assert document["pairs"] == [
        {"condition": "melt", "reference": "d/reference.mp4", "image": "d/image.png", "result": "d/result.mp4"}
    ]
    assert requests == [DemoRequest(output_dir=Path("demo")), DemoRequest(output_dir=Path("d"), model="m", seed=3)]
