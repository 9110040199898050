"""Files to files: what the process of generating makes of the inputs of SemanticGen."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from semanticgen.semantic_pipelines import FPS, make_pipeline
from sememe.cli.app import run
from sememe.errors import InputError, OutputError, PlanError
from sememe.events import Progress
from sememe.semanticgen.generation import SemanticGenInputs
from sememe.semanticgen.inputs import Request
from sememe.semanticgen.plan import Plan
from sememe.semanticgen.settings import Settings
from sememe.video import Clip, read_clip, write_clip
from sememe.workflows.generate import GenerationRequest, generate
from sememe.workflows.loading import load_model
from sememe.workflows.systems import SYSTEMS
from video_as_prompt.pipeline_factories import make_clip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("semanticgen") / "model"
    make_pipeline().save_pretrained(folder)
    return folder


def ask(model: Path, output: Path, **inputs: Any) -> GenerationRequest:
    return GenerationRequest(inputs=SemanticGenInputs(**inputs), output=output, model=str(model), seed=3)


def test_a_text_becomes_a_video_and_a_plan(model: Path, tmp_path: Path) -> None:
    events: list[Progress] = []
    segments = ("0-1: red", "1-2: melts")
    request = ask(model, tmp_path / "a.mkv", prompt="a cat", segments=segments, save_plan=tmp_path / "a.plan")
    result = generate(request, events.append)
    plan = Plan.load(tmp_path / "a.plan")
    assert plan.captions == ("a cat red",) * 2 + ("a cat melts",) * 2
    assert read_clip(result.output).num_frames == 17
    document = json.loads(result.sidecar.read_text())
    assert (document["output"]["num_frames"], document["segments"]) == (17, list(segments))
    assert document["output"]["plan"]["path"] == str(tmp_path / "a.plan")
    steps = [(event.stage, event.step) for event in events if event.num_steps]
    assert steps[:3] == [("generating: planning", step) for step in range(3)]
    assert steps[3:] == [("generating: rendering", step) for step in range(3)]
    again = generate(ask(model, tmp_path / "b.mkv", prompt="a cat", segments=segments, plan=tmp_path / "a.plan"))
    assert again.document["plan_sha256"] == document["output"]["plan"]["sha256"]
    with pytest.raises(InputError, match=r"a\.plan would overwrite an input"):
        generate(ask(model, tmp_path / "c.mkv", plan=tmp_path / "a.plan", save_plan=tmp_path / "a.plan"))
    # What is asked for beside a plan may differ a little, for files as for the pipeline.
    longer = generate(ask(model, tmp_path / "c.mkv", prompt="a cat", plan=tmp_path / "a.plan", seconds=2.5))
    assert longer.document["output"]["num_frames"] == 21


def test_the_plan_of_a_video_is_that_of_a_generation_from_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, output = tmp_path / "source.mp4", tmp_path / "a.plan"
    write_clip(make_clip(num_frames=13, height=32, width=40, fps=FPS), video)
    assert run(["plans", "encode", str(video), "-o", str(output), "--model", str(model), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{output}: 3 slices of 0.5 s\n"
    generate(ask(model, tmp_path / "b.mp4", source=video, save_plan=tmp_path / "b.plan"))
    found, expected = Plan.load(output), Plan.load(tmp_path / "b.plan")
    np.testing.assert_array_equal(found.features, expected.features)
    expected.check(found.encoder, found.compressor)
    assert run(["plans", "encode", str(tmp_path / "none.mp4"), "-o", str(output), "--model", str(model)]) == 2
    assert run(["plans", "encode", str(video), "-o", str(tmp_path / "a.mp4")]) == 2
    assert "name for the plan that ends in .plan" in capsys.readouterr().err


def test_a_span_of_a_source_keeps_the_rest(model: Path, tmp_path: Path) -> None:
    source = make_clip(num_frames=17, height=16, width=24, fps=FPS)
    write_clip(source, tmp_path / "source.mkv", lossless=True)
    loaded = load_model(SYSTEMS["semanticgen"], str(model))
    inputs = SemanticGenInputs(prompt="a cat", source=tmp_path / "source.mkv", span="1-1.5")
    settings = loaded.pipeline.defaults
    given = inputs.arguments(
        settings, {}, {"source": [read_clip(tmp_path / "source.mkv", **inputs.reading(settings, 0, 1))]}
    )
    made = loaded.pipeline(**given)
    (clip,) = inputs.pieces(loaded.pipeline, made)
    same = (clip.frames == source.frames).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(np.flatnonzero(~same), [9, 10, 11, 12])


def test_what_a_long_video_takes_is_announced(tmp_path: Path) -> None:
    inputs, hour = SemanticGenInputs(prompt="a cat", seconds=3600), Settings().override(num_frames=57601, fps=16.0)
    asked: list[Request] = []

    def estimate(request: Request, settings: Settings) -> dict[str, float]:
        asked.append(request)
        return {"plan": 64800.0, "latents": 90.0}

    pipeline = SimpleNamespace(estimate_seconds=estimate)
    text, time = inputs.announce(pipeline, hour)
    assert text.startswith("57601 frames of 832x480 pixels, 60.0 minutes, 69.01 GB")
    assert "planned as a whole, which takes up to four times as long for twice the length, and rendered in 721" in text
    assert time.startswith("planning about 18.0 hours and rendering about 90 seconds, by shorter steps")
    assert asked[0].texts == (("a cat",),)
    whole = replace(hour, plan=replace(hour.plan, window_seconds=None))
    Plan(np.zeros((2, 1, 1, 3), np.float32), 0.5, "e", "c").save(tmp_path / "a.plan")
    text, time = SemanticGenInputs(prompt="a cat", plan=tmp_path / "a.plan").announce(pipeline, whole)
    assert text.endswith("compressed, rendered as a whole")
    assert time.startswith("rendering about 90 seconds, by")
    assert [*inputs.announce(pipeline, Settings())] == []
    write_clip(Clip(np.zeros((130, 16, 16, 3), np.uint8), 2.0), tmp_path / "long.mp4")
    source = SemanticGenInputs(prompt="a cat", source=tmp_path / "long.mp4")
    pipeline = SimpleNamespace(estimate_seconds=estimate, grid=make_pipeline().grid)
    text, time = source.announce(pipeline, source.fit(pipeline, Settings()))
    assert text.startswith("1041 frames of 832x480 pixels, 1.1 minutes")
    assert text.endswith("compressed, rendered in 14 windows")
    assert time.startswith("rendering about 90 seconds, by")
    assert asked[-1].sources
    assert [*replace(source, span="2-4").announce(pipeline, Settings())] == []
    # The frames are told before time is spent on the time.
    assert next(SemanticGenInputs(prompt="a cat").announce(None, hour)) == next(inputs.announce(None, hour))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"seconds": 0.0}, "seconds above 0, got 0"),
        ({"seconds": -2.0}, "seconds above 0, got -2"),
        ({"segments": ("0-1: a", "2-3: b")}, "leave a gap between 1 and 2 seconds"),
        ({"segments": ("0-2: a", "1-3: b")}, "overlap between 1 and 2 seconds"),
        ({"segments": ("it jumps",)}, "a segment such as"),
        ({"span": "2-4"}, "--source with --span"),
        ({"span": "two", "source": Path("a.mp4")}, "such as 2-4, got 'two'"),
        ({"span": "4-2", "source": Path("a.mp4")}, "such as 2-4, got '4-2'"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SemanticGenInputs(**inputs).check(Settings())


def test_the_name_of_a_saved_plan_is_checked_before_a_model_is_loaded() -> None:
    with pytest.raises(OutputError, match=r"a name for the plan that ends in \.plan, got plan\.txt"):
        SemanticGenInputs(save_plan=Path("plan.txt")).check(Settings())


@pytest.mark.parametrize(
    ("name", "value"), [("seconds", 2.0), ("segments", ("0-1: a",)), ("source", Path("a")), ("plan", Path("a"))]
)
def test_a_length_is_given_once(name: str, value: object, tmp_path: Path) -> None:
    given: dict[str, Any] = {name: value}
    for settings in ({"size.num_frames": 9}, {"num_frames": Settings().size.num_frames}):
        request = replace(ask(tmp_path, tmp_path / "a.mp4", **given), settings=settings)
        with pytest.raises(InputError, match=f"size.num_frames or {name}, which takes its place, got both"):
            generate(request)


@pytest.mark.parametrize("name", ["source", "plan"])
@pytest.mark.parametrize("setting", ["num_planning_steps", "guidance.planning_guidance_scale"])
def test_settings_of_planning_have_no_effect_where_nothing_is_planned(name: str, setting: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {name: Path("a")}
    request = replace(ask(tmp_path, tmp_path / "a.mp4", **given), settings={setting: 3})
    with pytest.raises(InputError, match=f"{setting} or {name}, which takes its place, got both"):
        generate(request)


def test_plan_files_are_read_before_a_model_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    Plan(np.zeros((2, 1, 1, 3), np.float32), 0.5, "e", "c").save(path)
    SemanticGenInputs(plan=path).check(Settings())
    with pytest.raises(InputError, match="got both"):
        SemanticGenInputs(plan=path, source=tmp_path / "a.mp4").check(Settings())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(PlanError, match="cut short"):
        SemanticGenInputs(plan=path).check(Settings())
