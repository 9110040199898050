"""The built-in models do what they are for: floors that a broken default, scheduler or scale would break."""

import hashlib
import re
from itertools import count

import numpy as np
import pytest
import torch

from sememe import Clip, Gen1Pipeline, SemanticGenPipeline, VideoAsPromptPipeline
from sememe.checkpoints.zoo import WEIGHTS_FOLDER
from sememe.evaluation.oracle import Oracle
from sememe.gen1.evaluation import ROWS, Maker, deal_looks
from sememe.gen1.structure import DepthEstimator
from sememe.world import can_show, conditions, random_scene, random_script, render, render_script

# Drawn scenes of the range that is for choosing; references come from scenes of their own.
SCENES = (30_000_101, 30_000_102, 30_000_106)
REFERENCE_SCENE = 40_000_000


def make_reference(condition: str, start: int) -> Clip:
    """The condition in the first scene from `start` on that can show it."""
    scenes = map(random_scene, count(start))
    return render(next(scene for scene in scenes if can_show(scene, condition)), condition).clip


def test_most_of_12_references_are_followed() -> None:
    pipeline = VideoAsPromptPipeline.from_pretrained("tiny")
    pipeline.set_progress_bar_config(disable=True)
    seen = conditions(split="seen")
    followed = []
    for place, scene in enumerate(map(random_scene, SCENES)):
        names = [name for name in seen if name in conditions(scene=scene)][place::32][:4]
        picture = render(scene, None, num_frames=1).clip.frames[0]
        made = pipeline(
            image=[picture] * len(names),
            references=[
                [make_reference(name, REFERENCE_SCENE + 100 * place + 10 * index)] for index, name in enumerate(names)
            ],
            prompt=[""] * len(names),
            generator=[torch.Generator().manual_seed(place) for _ in names],
            num_inference_steps=3,  # a quarter of the default, and nearly as often right
        ).clips
        oracle = Oracle({name: render(scene, name).clip for name in conditions(scene=scene)})
        followed += [name for name, clip in zip(names, made, strict=True) if oracle.nearest(clip) == name]
    assert len(followed) >= 8, followed


def test_clips_get_the_look_of_a_picture_or_a_text_and_keep_their_structure() -> None:
    pipeline = Gen1Pipeline.from_pretrained("tiny")
    pipeline.set_progress_bar_config(disable=True)
    settings = pipeline.defaults.override(num_frames=4, num_inference_steps=3)
    estimator = DepthEstimator(pipeline.depth_estimator, pipeline.depth_processor)
    maker, rows = Maker(pipeline, settings, estimator), {row.name: row for row in ROWS}
    cases = deal_looks(2, 2, seed=23)
    trials = [(rows["picture"], cases[0]), (rows["picture"], cases[1]), (rows["text"], cases[0])]
    results = [maker.judge(row, case, maker.make(row, [case])[0]) for row, case in trials]
    assert all(result.is_right and result.structure > 0.5 for result in results), results


def test_videos_follow_the_plan_of_their_source() -> None:
    pipeline = SemanticGenPipeline.from_pretrained("tiny")
    pipeline.set_progress_bar_config(disable=True)
    scripts = [random_script(seed, seconds=2.125) for seed in SCENES[:2]]
    sources = [render_script(script.scene, script.spans, fps=8, size=64).clip for script in scripts]
    made = pipeline(
        ["", ""],
        source=sources,
        generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
        num_inference_steps=4,  # a third of the default
    ).clips
    errors = [[np.square(clip.frames / 255.0 - source.frames / 255.0).mean() for source in sources] for clip in made]
    assert errors[0][0] < 0.6 * errors[0][1], errors
    assert errors[1][1] < 0.6 * errors[1][0], errors


@pytest.mark.parametrize("name", ["video-as-prompt/tiny", "semanticgen/tiny", "gen1/tiny"])
def test_the_card_lists_the_files_that_ship(name: str) -> None:
    folder = WEIGHTS_FOLDER / name
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "README.md"]
    listed = re.findall(r"\| `([^`]+)` \| `([0-9a-f]{64})` \|", (folder / "README.md").read_text())
    assert dict(listed) == {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
