"""The trainings of Gen-1, by the recipes that take seconds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gen1.smoke_chain import gen1_runs, settings
from sememe.backbones.pictures import prepare_pictures
from sememe.checkpoints.zoo import describe_model
from sememe.data.array_cache import ArrayCache
from sememe.errors import InputError, RecipeError
from sememe.events import ignore_progress
from sememe.gen1.models import encode_structure
from sememe.gen1.network_unet import Gen1UNet
from sememe.gen1.pipeline import Gen1Pipeline
from sememe.gen1.prior import identify_space
from sememe.gen1.recipes import gen1_latents, gen1_unet, smoke_gen1_frames
from sememe.gen1.stage_depth import DepthStage
from sememe.gen1.stage_prior import PriorStage
from sememe.gen1.stage_unet import UNetStage
from sememe.gen1.stages import check_space
from sememe.training.clips import LookClips
from sememe.training.dataset_clips import FRAMES_ARRAY, CachedClips
from sememe.training.progress import read_log
from sememe.training.stage import step_generator
from sememe.video import Clip, write_image
from sememe.workflows.beginnings import prepare_stage
from sememe.workflows.train import resolve_training_recipe, train_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gen1_runs(tmp_path_factory.getbasetemp())
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def pipeline(root: Path) -> Gen1Pipeline:
    assert describe_model(gen1_runs(root) / "model").license == "apache-2.0"
    pipe = Gen1Pipeline.from_pretrained(gen1_runs(root) / "model")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def stage(root: Path, tmp_path_factory: pytest.TempPathFactory) -> UNetStage:
    recipe = resolve_training_recipe("smoke-gen1-unet", [*settings(root, "unet"), "settings.image_share=0"])
    made = prepare_stage(recipe, tmp_path_factory.mktemp("unet"), None, ignore_progress).stage
    assert isinstance(made, UNetStage)
    return made


def draw(stage: UNetStage, phase: str, step: int = 0) -> Any:
    stage.enter(phase)
    return stage.batch(step, step_generator(0, step, 0, "batch", CPU), CPU)


def test_every_stage_is_validated_in_each_of_its_phases(root: Path) -> None:
    for part in ("autoencoder", "depth", "clip", "prior", "unet"):
        lines = [line for line in read_log(gen1_runs(root) / part) if "validation_loss" in line]
        assert [line["step"] for line in lines] == ([1, 2, 3, 4] if part == "unet" else [2, 4])
    assert len(list((gen1_runs(root) / "autoencoder" / "samples").iterdir())) == 2
    assert len(list((gen1_runs(root) / "unet" / "samples").iterdir())) == 4


def test_captions_of_the_prior_do_not_depend_on_earlier_batches(root: Path, tmp_path: Path) -> None:
    recipe = resolve_training_recipe("smoke-gen1-prior", settings(root, "prior"))
    stages = [prepare_stage(recipe, tmp_path / name, None, ignore_progress).stage for name in ("one", "other")]
    found = []
    with torch.no_grad():
        for stage, num_before in zip(stages, (0, 9), strict=True):
            assert isinstance(stage, PriorStage)
            captions = list(dict.fromkeys(["", *stage.cache.captions]))
            for caption in captions[:num_before]:
                stage._encode([caption], CPU)
            found.append(stage._encode(captions, CPU))
    assert torch.equal(found[0].tokens, found[1].tokens)
    assert torch.equal(found[0].pooled, found[1].pooled)


def test_a_training_on_cached_frames_is_that_on_rendered_ones(root: Path, tmp_path: Path) -> None:
    recipe = smoke_gen1_frames()
    looks, cached = LookClips(recipe.clips, recipe.data), CachedClips(gen1_runs(root) / "frames", recipe.clips)
    assert (len(cached), cached.version) == (4, looks.version)
    for index in range(4):
        assert np.array_equal(cached.frames(index), looks.frames(index))
        assert cached.item(index) == looks.item(index)
    # Two looks of one scene differ in the caption and share all else that the scene decides on.
    assert looks.item(0).scene == looks.item(1).scene != looks.item(2).scene
    assert looks.item(0).caption != looks.item(1).caption
    given = ["dataset=none", "training.device=cpu", "training.validate_every=2"]
    train_recipe(resolve_training_recipe("smoke-gen1-autoencoder", given), tmp_path)
    weights = "model/vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / weights).read_bytes() == (gen1_runs(root) / "autoencoder" / weights).read_bytes()


def test_half_of_the_pictures_are_mirrored_with_their_depth(root: Path, tmp_path: Path) -> None:
    recipe = resolve_training_recipe("smoke-gen1-depth", [*settings(root, "depth"), "settings.batch_size=16"])
    stage = prepare_stage(recipe, tmp_path, None, ignore_progress).stage
    assert isinstance(stage, DepthStage)
    batch = stage.batch(0, step_generator(0, 0, 0, "batch", CPU), CPU)
    frames = stage.cache.select(FRAMES_ARRAY, range(len(stage.cache))).flatten(0, 1).float()
    both = {False: frames, True: frames.flip(2)}
    ways = []
    for picture, nearness in zip(batch.pictures, batch.nearness, strict=True):
        for is_mirrored, each in both.items():
            found = (prepare_pictures(each[..., :3], stage.processor) == picture).flatten(1).all(1)
            if found.any():
                ways.append(is_mirrored)
                assert ((1.0 / each[found][..., 3]) == nearness).flatten(1).all(1).any()
    assert len(ways) == 16
    assert {*ways} == {False, True}


def test_texts_alone_are_fitted_to_a_tower_of_pictures(root: Path, tmp_path: Path) -> None:
    recipe = resolve_training_recipe("smoke-gen1-clip", [*settings(root, "clip"), "settings.trains_images=false"])
    stage = prepare_stage(recipe, tmp_path, None, ignore_progress).stage
    rng = step_generator(0, 0, 0, "batch", CPU)
    stage.loss(stage.batch(0, rng, CPU), rng).total.backward()
    learning = {
        name: any(each.grad is not None for each in part.parameters()) for name, part in stage.modules().items()
    }
    assert learning == {"image_encoder": False, "text_encoder": True}


def test_the_cache_holds_what_the_pipeline_sees(root: Path, pipeline: Gen1Pipeline) -> None:
    cache = ArrayCache.open(gen1_runs(root) / "latents")
    assert {name: array.shape for name, array in cache.arrays.items()} == {
        "clean": (4, 3, 4, 4),
        "structure": (3, 16, 16),
        "content": (3, 16),
    }
    clip = CachedClips(gen1_runs(root) / "frames", smoke_gen1_frames().clips).frames(1)
    content = pipeline.encode_content(clip[2])
    torch.testing.assert_close(cache.select("content", [1])[0, 2], content.tokens[0].half(), atol=2e-3, rtol=2e-3)  # type: ignore[union-attr]
    assert cache.describe("content")["image_encoder"] == identify_space(pipeline.image_encoder)
    alone = ArrayCache.open(gen1_runs(root) / "content")
    assert {name: array.shape for name, array in alone.arrays.items()} == {"content": (1, 16)}
    assert alone.describe("content")["image_encoder"] == cache.describe("content")["image_encoder"]


def test_an_assembled_model_follows_a_text_and_a_picture(root: Path, pipeline: Gen1Pipeline) -> None:
    source = CachedClips(gen1_runs(root) / "frames", smoke_gen1_frames().clips).frames(0)
    clip = Clip(np.concatenate([source, source]), 8.0)  # two windows
    found = [
        pipeline(source=clip, content=content, generator=torch.Generator().manual_seed(0)).clips[0].frames
        for content in ("a red ball", source[0])
    ]
    assert [each.shape for each in found] == [(6, 16, 16, 3)] * 2
    assert not np.array_equal(found[0], found[1])


def test_each_phase_adds_what_it_is_named_for(stage: UNetStage) -> None:
    temporal = [parameter for name, parameter in stage.unet.named_parameters() if "temporal_" in name]
    content = draw(stage, "content")
    assert (content.clean.shape, content.structure) == ((2, 4, 1, 4, 4), None)
    assert not any(parameter.requires_grad for parameter in temporal)
    time = draw(stage, "time")
    assert (time.clean.shape, time.structure) == ((1, 4, 3, 4, 4), None)
    assert all(parameter.requires_grad for parameter in temporal)
    structure = draw(stage, "structure")
    assert (structure.structure.shape, structure.levels.tolist()) == ((1, 3, 16, 16), [0])
    assert {draw(stage, "levels", step).levels.item() for step in range(60)} == set(range(8))
    with pytest.raises(RecipeError, match="content, time, structure, levels, got 'main'"):
        stage.enter("main")


def test_structure_of_several_levels_is_that_of_each(stage: UNetStage) -> None:
    maps, levels = torch.rand(3, 2, 16, 16), torch.tensor([4, 0, 4])
    joined = encode_structure(stage.vae, maps, levels)
    alone = [encode_structure(stage.vae, maps[place : place + 1], levels[place : place + 1]) for place in range(3)]
    torch.testing.assert_close(joined, torch.cat(alone))


def test_embeddings_of_another_encoder_are_refused(root: Path) -> None:
    space = ArrayCache.open(gen1_runs(root) / "latents").describe("content")["image_encoder"]
    check_space({"image_encoder": space}, space, "a run")
    with pytest.raises(RecipeError, match="embeddings of one image encoder"):
        check_space({"image_encoder": space}, "another", "a run")


def test_a_customisation_is_loaded_and_taken_out_again(root: Path, pipeline: Gen1Pipeline, tmp_path: Path) -> None:
    runs, folder = gen1_runs(root), tmp_path / "pictures"
    frames = CachedClips(runs / "frames", smoke_gen1_frames().clips).frames(2)
    folder.mkdir()
    for place, frame in enumerate(frames[:2]):
        write_image(frame, folder / f"{place}.png")
    given = [f"latents={runs / 'latents'}", f"model={runs / 'model'}", "training.device=cpu"]
    recipe = resolve_training_recipe("smoke-gen1-customisation", [*given, f"pictures={tmp_path / 'none'}"])
    with pytest.raises(InputError, match="expected pictures"):
        train_recipe(recipe, tmp_path / "run")
    given += [f"pictures={folder}", "training.learning_rate=0.3"]  # large, so that four steps are seen
    recipe = resolve_training_recipe("smoke-gen1-customisation", given)
    train_recipe(recipe, tmp_path / "run")

    def generate() -> np.ndarray:
        source = Clip(frames, 8.0)
        return pipeline(source=source, content=frames[0], generator=torch.Generator().manual_seed(0)).clips[0].frames

    before = generate()
    pipeline.load_lora_weights(tmp_path / "run" / "model" / "lora")
    try:
        assert not np.array_equal(generate(), before)
        with pytest.raises(InputError, match="adapters are loaded"):
            pipeline.save_pretrained(tmp_path / "model")
    finally:
        pipeline.unload_lora_weights()
    assert np.abs(generate().astype(int) - before).max() <= 1


def test_the_recipe_for_stable_diffusion_is_a_model_of_its_size() -> None:
    """On the meta device, which holds no weights: the network as `gen1-unet` begins with it."""
    recipe = gen1_unet()
    with torch.device("meta"):
        model = Gen1UNet(
            max_frames=recipe.network.max_frames,
            cross_attention_dim=768,
            attention_head_dim=8,
            encoder_hid_dim=1280,
            encoder_hid_dim_type="text_proj",
        )
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    # The image model's own 859,520,964, with 8 more channels of conditions and a projection of the content.
    spatial = sum(size for name, size in sizes.items() if "temporal_" not in name)
    assert spatial == 859_520_964 + 8 * 320 * 9 + (1280 * 768 + 768)
    assert gen1_latents().clips.num_frames == model.config.max_frames
    assert [phase.num_steps for phase in recipe.training.phases] == [15_000, 75_000, 25_000, 10_000]
