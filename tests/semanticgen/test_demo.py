"""The demonstration, with what a generation is asked for, and with a random model."""

import json
from pathlib import Path

import numpy as np
import pytest

from semanticgen.semantic_pipelines import make_pipeline
from sememe.errors import InputError, OutputError
from sememe.records import SizeSettings
from sememe.semanticgen.demo import make_demo
from sememe.semanticgen.generation import SemanticGenInputs
from sememe.semanticgen.plan import Plan
from sememe.semanticgen.segments import parse_segment
from sememe.video import read_clip, read_image, write_clip, write_image
from sememe.workflows.demo import DemoRequest, run_demo
from video_as_prompt.pipeline_factories import make_clip

SIZE = SizeSettings(height=16, width=32, num_frames=16, fps=8.0)


def test_texts_are_planned_and_a_clip_rendered_under_another_text(tmp_path: Path) -> None:
    given: list[SemanticGenInputs] = []

    def make(inputs: SemanticGenInputs, output: Path) -> None:
        given.append(inputs)
        write_clip(make_clip(num_frames=16, height=16, width=32), output)
        assert inputs.save_plan is not None
        Plan(np.random.default_rng(len(given)).normal(size=(4, 2, 4, 3)).astype(np.float32), 0.5, "e", "c").save(
            inputs.save_plan
        )

    told, anew = make_demo(tmp_path / "sheet.png", None, 3, SIZE, make)
    assert [(inputs.prompt, inputs.segments, inputs.source, inputs.save_plan) for inputs in given] == [
        (film.prompt, film.segments, film.source, film.plan) for film in (told, anew)
    ]
    segments = [parse_segment(text) for text in told.segments]
    assert segments[-1].stop == 2.0  # 16 frames
    assert told.prompt.endswith(";")
    assert not any(told.prompt in segment.text for segment in segments)
    assert (anew.segments, anew.prompt.count(";")) == ((), 1)
    assert (told.source, anew.source) == (None, tmp_path / "source.mp4")
    assert read_clip(tmp_path / "source.mp4").frames.shape == (16, 16, 32, 3)
    assert len({told.prompt, anew.prompt, told.result, anew.result, told.plan, anew.plan}) == 6
    # Two results and the source, 128 pixels high each, and two plans of 2 rows.
    assert read_image(tmp_path / "sheet.png").shape[0] > 5 * 128
    again = make_demo(tmp_path / "sheet.png", tmp_path / "own.png", 3, SIZE, make)
    assert again == (told, anew)
    assert [inputs.image for inputs in given] == [None, None, tmp_path / "own.png", None]
    assert make_demo(tmp_path / "sheet.png", None, 4, SIZE, make)[0].prompt != told.prompt


def test_everything_is_there_and_may_be_made_again(tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path / "model")
    request = DemoRequest(output_dir=tmp_path / "demo", system="semanticgen", model=str(tmp_path / "model"))
    result = run_demo(request)
    assert result == run_demo(request)
    told, anew = result.pairs
    for film in result.pairs:
        assert read_clip(film.result).frames.shape == (17, 16, 24, 3)
        document = json.loads(film.result.with_suffix(".json").read_text())
        assert (document["prompt"], document["output"]["plan"]["path"]) == (film.prompt, str(film.plan))
    assert Plan.load(told.plan).features.shape == Plan.load(anew.plan).features.shape
    assert not np.array_equal(Plan.load(told.plan).features, Plan.load(anew.plan).features)
    write_image(np.zeros((16, 24, 3), np.uint8), tmp_path / "own.png")
    with pytest.raises(InputError, match="text alone"):
        run_demo(DemoRequest(**(vars(request) | {"image": tmp_path / "own.png"})))
    told.plan.write_bytes(anew.plan.read_bytes())
    with pytest.raises(OutputError, match=r"but result\.plan is another file"):
        run_demo(request)
