"""What runs on a CPU runs on a CUDA device too, and gives the same."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gen1 import smoke_chain as gen1_chain
from semanticgen import smoke_chain as semanticgen_chain
from sememe import Clip, VideoAsPromptPipeline
from sememe.compute.placement import apply_offload
from sememe.compute.speed import compile_transformer
from sememe.training.progress import read_log
from sememe.workflows.train import resolve_training_recipe, train_recipe
from sememe.world import random_scene, render
from workflows import smoke_runs

pytestmark = pytest.mark.gpu
VIDEO_AS_PROMPT = ("autoencoder", "backbone", "expert", "expert-joint")
SEMANTICGEN = ("semantic-encoder", "renderer", "planner", "reader")
GEN1 = ("autoencoder", "depth", "clip", "prior", "unet")


def list_settings(root: Path, recipe: str) -> list[str]:
    """What a recipe must be told to find its inputs, which were made on the CPU."""
    part = recipe.removeprefix("smoke-")
    if part in VIDEO_AS_PROMPT:
        return smoke_runs.settings(smoke_runs.smoke_runs(root), part)
    if part in SEMANTICGEN:
        semanticgen_chain.semantic_runs(root)
        return semanticgen_chain.settings(root, part)
    gen1_chain.gen1_runs(root)
    return gen1_chain.settings(root, part.removeprefix("gen1-"))


RECIPES = [f"smoke-{part}" for part in (*VIDEO_AS_PROMPT, *SEMANTICGEN, *(f"gen1-{part}" for part in GEN1))]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_stage_trains(recipe: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    given = [each for each in list_settings(tmp_path_factory.getbasetemp(), recipe) if "device=" not in each]
    resolved = resolve_training_recipe(recipe, [*given, "training.device=cuda"])
    assert train_recipe(resolved, tmp_path).is_complete
    lines = read_log(tmp_path)
    assert lines
    assert all(math.isfinite(line["loss"]) for line in lines)


@pytest.fixture
def pipeline() -> VideoAsPromptPipeline:
    found = VideoAsPromptPipeline.from_pretrained("tiny")
    found.set_progress_bar_config(disable=True)
    return found


def generate(pipeline: VideoAsPromptPipeline) -> Clip:
    """A clip of four steps, whose noise is drawn on the CPU."""
    picture = render(random_scene(5), None, num_frames=1).clip.frames[0]
    made: Clip = pipeline(
        image=picture,
        references=[render(random_scene(6), "sepia").clip],
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=4,
    ).clips[0]
    return made


def distance(first: Clip, second: Clip) -> float:
    """Mean absolute difference in levels of 0 to 255."""
    return float(np.abs(first.frames.astype(np.float32) - second.frames).mean())


def test_frames_are_those_of_the_cpu(pipeline: VideoAsPromptPipeline) -> None:
    expected = generate(pipeline)
    assert distance(generate(pipeline.to("cuda")), expected) < 0.5


@pytest.mark.parametrize("kind", ["model", "group", "sequential"])
def test_offload_changes_no_pixel(kind: str, pipeline: VideoAsPromptPipeline) -> None:
    expected = generate(VideoAsPromptPipeline.from_pretrained("tiny").to("cuda"))
    apply_offload(pipeline, kind, "cuda")
    assert distance(generate(pipeline), expected) == 0


def test_compiled_blocks_are_close(pipeline: VideoAsPromptPipeline) -> None:
    expected = generate(pipeline.to("cuda"))
    compile_transformer(pipeline)
    assert distance(generate(pipeline), expected) < 0.5


def test_half_precision_is_close(pipeline: VideoAsPromptPipeline) -> None:
    expected = generate(pipeline.to("cuda"))
    assert distance(generate(pipeline.to(torch.bfloat16)), expected) < 4
