"""Experts on other backbones than those of tiny: from videos to a model that generates, by the seconds-long recipes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sememe.data.array_cache import ArrayCache
from sememe.data.manifest import VideoSample, write_manifest
from sememe.errors import RecipeError
from sememe.training.clips import render_item, world_item
from sememe.training.progress import read_log
from sememe.training.recipes import LatentsRecipe
from sememe.video import read_clip, resize_clip, write_clip
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.workflows.precompute import precompute_latents
from sememe.workflows.recipe_list import resolve_recipe
from sememe.workflows.train import resolve_training_recipe, train_recipe
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_pipeline

CPU = ["training.device=cpu", "training.num_threads=1"]


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    make_cogvideox_pipeline().save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def precompute(backbone: Path, folder: Path, *more: str) -> Path:
    """Latents of two conditions in three scenes each."""
    samples = []
    (folder / "data").mkdir(parents=True)
    for index in range(6):
        write_clip(
            render_item(world_item(index * 9), num_frames=9, size=(32, 48)).clip, folder / "data" / f"{index}.mp4"
        )
        samples.append(
            VideoSample(path=f"{index}.mp4", caption="a cat", condition=f"{index % 2}", scene=f"{index // 2}")
        )
    write_manifest(samples, folder / "data" / "manifest.jsonl")
    given = [f"autoencoder={backbone}", f"dataset={folder / 'data'}", "device=cpu", *more]
    given += [] if "text_encoder=none" in more else [f"text_encoder={backbone}"]
    recipe = resolve_recipe("smoke-cogvideox-latents", given, LatentsRecipe, "precompute")
    return Path(precompute_latents(recipe, folder / "latents").folder)


def test_an_expert_is_trained_and_generates(backbone: Path, tmp_path: Path) -> None:
    latents = precompute(backbone, tmp_path)
    given = [*CPU, f"latents={latents}", f"backbone={backbone}"]
    summary = train_recipe(resolve_training_recipe("smoke-cogvideox-expert", given), tmp_path / "run")
    assert summary.is_complete
    losses = [line["loss"] for line in read_log(tmp_path / "run")]
    # The backbone is random, so it predicts about nothing of a target of unit variance.
    assert losses == pytest.approx([1.0] * 4, abs=1.0)
    assert summary.model is not None
    trained = CogVideoXVideoAsPromptTransformer.from_folders(backbone / "transformer", summary.model / "expert")
    pipe = VideoAsPromptPipeline.from_pretrained(backbone)
    assert any(
        not torch.equal(one, other)
        for one, other in zip(*(model.parameters() for model in (trained, pipe.transformer)), strict=True)
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer = trained
    clip = pipe(np.zeros((32, 48, 3), np.uint8), [make_clip()], generator=torch.Generator().manual_seed(0)).clips[0]
    assert clip.frames.shape == (9, 32, 48, 3)


def test_cached_text_equals_that_of_the_encoder(backbone: Path, tmp_path: Path) -> None:
    with_text = precompute(backbone, tmp_path / "cached", "dtype=bfloat16")
    without = precompute(backbone, tmp_path / "encoded", "text_encoder=none", "dtype=bfloat16")
    losses = []
    for number, latents in enumerate((with_text, without)):
        given = [*CPU, f"latents={latents}", f"backbone={backbone}", "training.num_steps=1"]
        train_recipe(resolve_training_recipe("smoke-cogvideox-expert", given), tmp_path / str(number))
        losses.append(read_log(tmp_path / str(number))[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    given = [*CPU, f"latents={precompute(backbone, tmp_path / 'other', 'reads_padding=false')}", f"backbone={backbone}"]
    with pytest.raises(RecipeError, match="reads_padding"):
        train_recipe(resolve_training_recipe("smoke-cogvideox-expert", given), tmp_path / "other")


def test_latents_for_another_family_are_refused(backbone: Path, tmp_path: Path) -> None:
    latents = precompute(backbone, tmp_path, "first_frame_fill=grey")
    given = [*CPU, f"latents={latents}", f"backbone={backbone}"]
    with pytest.raises(RecipeError, match="first_frame_fill=grey"):
        train_recipe(resolve_training_recipe("smoke-cogvideox-expert", given), tmp_path / "run")


WAN = ["first_frame_fill=grey", "reads_padding=false"]


def test_an_expert_reads_image_embeddings(tmp_path: Path) -> None:
    """The backbone of Wan2.1-I2V: the cache holds what the pipeline gives it, and only its own encoder is accepted."""
    pipeline, backbone = make_pipeline(clip=True), tmp_path / "backbone"
    pipeline.save_pretrained(backbone)
    latents = precompute(
        backbone, tmp_path, *WAN, f"first_frame_encoder={backbone}", "text_length=512", "dtype=bfloat16"
    )
    cache = ArrayCache.open(latents)
    first = resize_clip(read_clip(tmp_path / "data" / "2.mp4"), 32, 48).frames[0]
    expected = pipeline.family.encode_pictures([[first]])
    assert expected is not None
    torch.testing.assert_close(cache.select("image", [2]).float(), expected, atol=0.02, rtol=0.02)

    given = [*CPU, f"latents={latents}", "training.num_steps=1"]
    summary = train_recipe(resolve_training_recipe("smoke-expert", [*given, f"backbone={backbone}"]), tmp_path / "run")
    assert summary.is_complete
    with torch.no_grad():
        next(pipeline.image_encoder.parameters()).add_(1.0)
    pipeline.save_pretrained(tmp_path / "other")
    with pytest.raises(RecipeError, match="image embeddings were made with the image_encoder"):
        train_recipe(
            resolve_training_recipe("smoke-expert", [*given, f"backbone={tmp_path / 'other'}"]), tmp_path / "b"
        )


def test_an_expert_without_a_first_frame(tmp_path: Path) -> None:
    """The backbone of Wan2.1-T2V."""
    make_pipeline(in_channels=4).save_pretrained(tmp_path / "backbone")
    latents = precompute(
        tmp_path / "backbone", tmp_path, "first_frame_fill=none", "reads_padding=false", "text_length=none"
    )
    given = [*CPU, f"latents={latents}", f"backbone={tmp_path / 'backbone'}", "training.num_steps=1"]
    assert train_recipe(resolve_training_recipe("smoke-expert", given), tmp_path / "run").is_complete
