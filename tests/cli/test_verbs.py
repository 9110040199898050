"""The verbs translate faithfully: flags into requests, results into lines or JSON."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import sememe
from cli.runs import refused, run_here
from model_folders import save_model
from sememe.checkpoints import zoo
from sememe.compute.loading_settings import LoadingSettings
from sememe.gen1.settings import Settings as Gen1Settings
from sememe.records import apply_overrides, list_fields, replace_fields
from sememe.semanticgen.demo import DemoFilm
from sememe.video_as_prompt import parity
from sememe.video_as_prompt.demo import DemoPair
from sememe.video_as_prompt.generation import VideoAsPromptInputs
from sememe.video_as_prompt.parity import ParityResult
from sememe.video_as_prompt.settings import Settings
from sememe.workflows import demo, generate
from sememe.workflows.demo import DemoRequest, DemoResult
from sememe.workflows.generate import GenerationRequest, GenerationResult
from sememe.workflows.input_files import ImageFile


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[GenerationRequest]:
    """The requests that reach the workflow, which does nothing."""
    seen: list[GenerationRequest] = []

    def note(request: GenerationRequest, *_: Any) -> GenerationResult:
        seen.append(request)
        return GenerationResult(request.output, request.output.with_suffix(".json"), None, 7, {"seed": 7})

    monkeypatch.setattr(generate, "generate", note)
    return seen


FILES = ("--reference", "r.mp4", "--image", "i.png", "-o", "out.mp4")


def test_few_flags_leave_everything_to_the_model(
    requests: list[GenerationRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run_here(capsys, "generate", "video-as-prompt", *FILES)
    assert (outcome.code, outcome.out, outcome.err) == (0, "out.mp4\n", "")
    inputs = VideoAsPromptInputs(references=(Path("r.mp4"),), image=Path("i.png"))
    assert requests == [GenerationRequest(inputs=inputs, output=Path("out.mp4"), model="tiny")]


def test_flags_and_overrides_reach_the_workflow(
    requests: list[GenerationRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    flags: dict[str, Any] = {"--prompt": "p", "--model": "m", "--seed": 3, "--steps": 4, "--num-frames": 9}
    flags |= {"--guidance-scale": 2.0, "--reference-guidance-scale": 3.0}
    flags |= {"--sheet": "s.png", "--last-image": "l.png", "--vram": 24.0, "--device": "cpu"}
    flags |= {"--reference-start": 1.5, "--reference-end": 3.0}
    arguments = [part for flag in flags.items() for part in flag]
    arguments += ["--reference", "b.mp4", "--reference-prompt", "x", "--reference-prompt", "y", "--influence"]
    arguments += [
        "--set",
        "height=32",
        "--set",
        "width=48",
        "--set",
        "loading.dtype=bfloat16",
        "--set",
        "batching=batched",
        "--set",
        "guidance.guidance_interval=0.25,1",
    ]
    outcome = run_here(capsys, "generate", "video-as-prompt", *FILES, *arguments, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out) == {"seed": 7}
    (request,) = requests
    assert (request.model, request.seed, request.sheet, request.influence) == ("m", 3, Path("s.png"), True)
    assert request.inputs == VideoAsPromptInputs(
        references=(Path("r.mp4"), Path("b.mp4")),
        image=Path("i.png"),
        prompt="p",
        reference_prompts=("x", "y"),
        last_image=Path("l.png"),
        reference_start=1.5,
        reference_end=3.0,
    )
    assert request.loading == LoadingSettings(device="cpu", dtype="bfloat16", vram=24.0)
    expected = Settings().override(height=32, width=48, num_frames=9, num_inference_steps=4, guidance_scale=2.0)
    expected = expected.override(reference_guidance_scale=3.0, batching="batched", guidance_interval=(0.25, 1.0))
    assert replace_fields(Settings(), request.settings) == expected


def test_a_result_for_each_picture_and_seed(
    requests: list[GenerationRequest], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[GenerationRequest] = []
    monkeypatch.setattr(generate, "_load", lambda request, _: loaded.append(request))
    monkeypatch.setattr(ImageFile, "read", lambda _: None)  # there are no files
    more = ("--image", "other/j.png", "--seed", 1, "--seed", 2, "--sheet", "s.png")
    outcome = run_here(capsys, "generate", "video-as-prompt", *FILES, *more)
    assert outcome.code == 0, outcome.err
    assert outcome.out.split() == ["out-i-1.mp4", "out-i-2.mp4", "out-j-1.mp4", "out-j-2.mp4"]
    assert [(request.inputs.image.name, request.seed) for request in requests] == [  # type: ignore[attr-defined]
        ("i.png", 1),
        ("i.png", 2),
        ("j.png", 1),
        ("j.png", 2),
    ]
    assert requests[-1].sheet == Path("s-j-2.png")
    assert len(loaded) == 1
    twice = ("--image", "other/i.png")
    assert "a different name for each result" in refused(
        run_here(capsys, "generate", "video-as-prompt", *FILES, *twice)
    )


def test_a_config_file_comes_before_defaults_and_behind_flags(
    requests: list[GenerationRequest], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        """
model: m
seed: 5
inputs: {image: i.png, references: r.mp4, prompt: "a, b"}
settings: {height: 32, guidance.guidance_scale: 2}
loading: {dtype: bfloat16, device: cpu}
"""
    )
    arguments = ("--config", config, "--guidance-scale", 3, "--device", "cuda", "-o", "out.mp4")
    assert run_here(capsys, "generate", "video-as-prompt", *arguments).code == 0
    (request,) = requests
    assert request.inputs == VideoAsPromptInputs(image=Path("i.png"), references=(Path("r.mp4"),), prompt="a, b")
    assert (request.model, request.seed) == ("m", 5)
    expected = Settings().override(height=32, guidance_scale=3.0)
    assert replace_fields(Settings(), request.settings) == expected
    assert request.loading == LoadingSettings(dtype="bfloat16", device="cuda")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "got list"),
        ("inputs: {image: 3}", "image must be a path"),
        ("inputs: {picture: a.png}", "got picture"),
        ("model: [1]", "model must be a text"),
        ("loading: {dtype: int4}", "dtype must be one of"),
        ("system: gen1", "one for gen1"),
        ("steps: 3", "got steps"),
        ("a: [", "cannot be read"),
        ("model: tiny", "Missing option '--image'"),
    ],
)
def test_config_files_that_ask_for_something_else(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    given = ("--like", tmp_path / "run.yaml", "-o", tmp_path / "out.mp4")
    assert message in refused(run_here(capsys, "generate", "video-as-prompt", *given))


def test_a_config_that_would_not_end_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "run.yaml")
    given = ("--config", tmp_path / "run.yaml", "-o", tmp_path / "out.mp4")
    assert "to be a file of at most 10 MB" in refused(run_here(capsys, "generate", "video-as-prompt", *given))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "reference_strenght=1"), "nearest is reference.reference_strength"),
        (("--lora", "missing.safetensors"), "file that is there, got missing.safetensors"),
        (("--set", "num_frames=5", "--num-frames", 9), "size.num_frames is given twice"),
        (("--set", "loading.dtype=int4"), "float32, bfloat16, float16"),
        (("--set", "height"), "key=value"),
    ],
)
def test_wrong_overrides_are_refused(
    arguments: tuple[Any, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(run_here(capsys, "generate", "video-as-prompt", *FILES, *arguments))


def test_all_settings_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = run_here(capsys, "generate", "video-as-prompt", "--help-all").out
    for key in (*list_fields(Settings), *list_fields(LoadingSettings, "loading.")):
        assert f"{key}=" in text


def test_listed_defaults_are_what_set_takes(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run_here(capsys, "generate", "gen1", "--help-all").out.splitlines()
    listed = [line for line in lines if line.partition("=")[0] in list_fields(Gen1Settings)]
    assert apply_overrides(Gen1Settings(), listed) == Gen1Settings()


def test_models_are_listed_for_people_and_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "WEIGHTS_FOLDER", tmp_path)
    assert "no model" in run_here(capsys, "models").err
    assert json.loads(run_here(capsys, "models", "--json").out) == []
    save_model(tmp_path / "video-as-prompt" / "random")
    text = run_here(capsys, "models").out
    assert text.startswith("video-as-prompt/random  (video-as-prompt; 48x32, 5 frames; 0.")
    assert "license apache-2.0; source: made by a test" in text
    (record,) = json.loads(run_here(capsys, "models", "--json").out)
    assert (record["name"], record["num_frames"], record["folder"]) == (
        "video-as-prompt/random",
        5,
        str(tmp_path / "video-as-prompt" / "random"),
    )
    assert record["num_parameters"] > 1000
    assert "wan-14b  (video-as-prompt; `sememe download wan-14b`" in text


def test_released_models_are_fetched_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fetch(*given: Any, **more: Any) -> Path:
        asked.append((*given, more["revision"]))
        return tmp_path

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    outcome = run_here(capsys, "download", "cogvideox-5b", "--revision", "abc")
    assert (outcome.code, outcome.out) == (0, f"{tmp_path}\n")
    assert asked == [("ByteDance/Video-As-Prompt-CogVideoX-5B", "abc")]
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "0"
    assert "wan-14b, cogvideox-5b" in refused(run_here(capsys, "download", "tiny"))


def test_the_environment_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(run_here(capsys, "env", "--json").out)
    assert document["versions"]["sememe"] == sememe.__version__
    assert 0 < document["free_memory_gb"] <= document["memory_gb"]
    lines = run_here(capsys, "env").out.splitlines()
    assert lines[0].split() == ["sememe", sememe.__version__]
    assert len(lines) == len(document) - 1 + len(document["versions"])


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
    assert [line.split() for line in lines[:2]] == [["condition", "melt"], ["reference", "demo/reference.mp4"]]
    assert lines[-1].split() == ["sheet", "demo/sheet.png"]
    document = json.loads(run_here(capsys, "demo", "gen1", "-o", "d", "--model", "m", "--seed", 3, "--json").out)
    assert document["sheet"] == "d/sheet.png"
    assert document["pairs"] == [
        {"condition": "melt", "reference": "d/reference.mp4", "image": "d/image.png", "result": "d/result.mp4"}
    ]
    film = DemoFilm("a cat;", ("0-2: it jumps", "2-4: it waits"), None, Path("p"), Path("r"))
    monkeypatch.setattr(demo, "run_demo", lambda *_: DemoResult((film,), Path("s")))
    assert [line.split(maxsplit=1) for line in run_here(capsys, "demo", "semanticgen").out.splitlines()] == [
        ["prompt", "a cat;"],
        ["segments", "0-2: it jumps, 2-4: it waits"],
        ["plan", "p"],
        ["result", "r"],
        ["sheet", "s"],
    ]
    assert requests == [
        DemoRequest(output_dir=Path("demo")),
        DemoRequest(output_dir=Path("d"), system="gen1", model="m", seed=3),
    ]
