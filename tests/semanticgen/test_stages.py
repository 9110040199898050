"""The trainings of SemanticGen, by the recipes that take seconds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from semanticgen.smoke_chain import STAGES, semantic_runs, settings
from sememe.checkpoints.components import load_strictly
from sememe.checkpoints.zoo import describe_model
from sememe.data.array_cache import ArrayCache
from sememe.errors import ModelError
from sememe.evaluation.reader import VOCABULARY, name_scene
from sememe.events import ignore_progress
from sememe.semanticgen.arrays import ARRAY, LABELS, WORDS_ARRAY, read_clock
from sememe.semanticgen.compressor import SemanticCompressor
from sememe.semanticgen.encoders import load_encoder
from sememe.semanticgen.pipeline import SemanticGenPipeline
from sememe.semanticgen.recipes import smoke_planner, smoke_semanticgen
from sememe.semanticgen.stage_encoder import EncoderStage, score_labels
from sememe.semanticgen.stage_planner import PlannerStage
from sememe.semanticgen.stage_renderer import RendererStage
from sememe.semanticgen.stage_settings import RendererRecipe, SemanticLatentsRecipe
from sememe.semanticgen.stages import PlannerPreparation
from sememe.training.dataset_clips import FRAMES_ARRAY
from sememe.training.progress import read_log
from sememe.training.stage import Stage, step_generator
from sememe.training.text_source import EncodedText
from sememe.workflows.assemble import assemble_recipe
from sememe.workflows.beginnings import prepare_stage
from sememe.workflows.precompute import precompute_latents
from sememe.workflows.recipe_list import resolve_recipe
from sememe.workflows.train import resolve_training_recipe, train_recipe
from sememe.world import random_script, render_script
from workflows.smoke_runs import smoke_runs

CONSTANT = ["training.schedule.shape=constant", "training.ema_decay=0"]


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    semantic_runs(tmp_path_factory.getbasetemp())
    return tmp_path_factory.getbasetemp()


def test_the_cache_holds_latents_and_features_of_the_same_scripts(root: Path) -> None:
    cache = ArrayCache.open(semantic_runs(root) / "semantic-latents")
    clock = read_clock(cache)
    assert (clock.fps, clock.frames_per_slice) == (4.0, 2)
    # 17 frames at 8 a second are 2.125 seconds: four slices of half a second, of 2x2 features.
    assert cache.arrays[ARRAY].shape == (4, 2, 2, 24)
    assert cache.arrays["clean"].shape[1] == 5
    encoder = load_encoder(semantic_runs(root) / "semantic-encoder" / "model" / "semantic_encoder", 4.0)
    assert cache.describe(ARRAY)["semantic_encoder"] == encoder.fingerprint
    assert all(", then " in caption or ";" in caption for caption in cache.full_captions)
    spans = render_script(random_script(4, seconds=17 / 8).scene, random_script(4, seconds=17 / 8).spans, size=16).spans
    assert cache.item(4).segment_captions == tuple(span.caption for span in spans)
    assert cache.item(4).segment_ends == tuple(span.end for span in spans)


def test_frames_and_words_tell_what_a_script_shows(root: Path) -> None:
    cache = ArrayCache.open(semantic_runs(root) / "semantic-frames")
    script = random_script(4, seconds=17 / 8)
    shot = render_script(script.scene, script.spans, size=16, fps=8)
    frames, words = (cache.select(name, [4])[0].numpy() for name in (FRAMES_ARRAY, WORDS_ARRAY))
    assert (frames[..., :3] == shot.clip.frames).all()
    np.testing.assert_allclose(frames[..., 3] / 255, shot.mask, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(frames[..., 4] / 255, (0.5 / shot.depth).clip(0, 1), atol=0.5 / 255 + 1e-6)
    assert {name: VOCABULARY[name][words[place]] for place, name in enumerate(LABELS)} == name_scene(script.scene)
    names = [span.condition or "nothing" for span in shot.spans for _ in range(round((span.end - span.start) * 8))]
    assert [VOCABULARY["condition"][word] for word in words[len(LABELS) :]] == names


def test_held_out_scripts_are_validated_on(root: Path) -> None:
    for part in ("semantic-encoder", "planner", "renderer"):
        lines = [line for line in read_log(semantic_runs(root) / part) if "validation_loss" in line]
        assert [line["step"] for line in lines] == [2, 4]
    assert "validation_flow" in lines[0]
    assert (semantic_runs(root) / "renderer" / "samples" / "step_000004.png").stat().st_size > 1000


@pytest.mark.parametrize("part", STAGES)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(part: str, root: Path, tmp_path: Path) -> None:
    given = [*settings(root, part), *CONSTANT]
    straight = resolve_training_recipe(f"smoke-{part}", [*given, "training.num_steps=2"])
    train_recipe(straight, tmp_path / "straight")
    train_recipe(resolve_training_recipe(f"smoke-{part}", [*given, "training.num_steps=1"]), tmp_path / "parts")
    train_recipe(straight, tmp_path / "parts", allow_changes=["training.num_steps"])
    straight_model = tmp_path / "straight" / "model"
    names = [path.relative_to(straight_model) for path in sorted(straight_model.rglob("*.safetensors"))]
    assert names
    for name in names:
        one, other = load_file(straight_model / name), load_file(tmp_path / "parts" / "model" / name)
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items()), name


def prepare(part: str, root: Path, folder: Path, *changes: str) -> object:
    changed = {change.partition("=")[0] for change in changes}
    given = [setting for setting in settings(root, part) if setting.partition("=")[0] not in changed]
    recipe = resolve_training_recipe(f"smoke-{part}", [*given, *changes])
    return prepare_stage(recipe, folder, None, ignore_progress).stage


def generators(step: int) -> tuple[torch.Generator, torch.Generator]:
    cpu = torch.device("cpu")
    return step_generator(0, step, 0, "batch", cpu), step_generator(0, step, 0, "loss", cpu)


@pytest.mark.parametrize("part", STAGES)
def test_a_loss_is_the_same_when_its_batch_is_made_twice(part: str, root: Path, tmp_path: Path) -> None:
    losses = []
    for place, step in enumerate((3, 3, 4)):
        # A loss moves the compressor's statistics, so each is one of a stage of its own.
        stage = prepare(part, root, tmp_path / str(place))
        assert isinstance(stage, Stage)
        for_batch, for_loss = generators(step)
        losses.append(stage.loss(stage.batch(step, for_batch, torch.device("cpu")), for_loss).total.item())
    assert losses[0] == losses[1] != losses[2]


def test_a_renderer_without_plans_trains_no_compressor(root: Path, tmp_path: Path) -> None:
    stage = prepare("renderer", root, tmp_path / "without", "settings.drop_plan=1", "encoder=none")
    assert isinstance(stage, RendererStage)
    for_batch, for_loss = generators(0)
    batch = stage.batch(0, for_batch, torch.device("cpu"))
    assert batch.semantic is None
    stage.loss(batch, for_loss).total.backward()
    assert all(parameter.grad is None for parameter in stage.compressor.parameters())
    assert stage.transformer.semantic_embedding is not None
    assert stage.transformer.semantic_embedding.weight.grad is None
    assert stage.transformer.patch_embedding.weight.grad is not None


def test_renderer_and_compressor_learn_together(root: Path, tmp_path: Path) -> None:
    stage = prepare("renderer", root, tmp_path, "settings.drop_plan=0", "settings.kl_weight=0", "encoder=none")
    assert isinstance(stage, RendererStage)
    for_batch, for_loss = generators(0)
    before = stage.compressor.channel_std.clone()
    found = stage.loss(stage.batch(0, for_batch, torch.device("cpu")), for_loss)
    found.total.backward()
    # No channel begins as the standard Gaussian, which would tell the renderer nothing.
    assert found.metrics["collapsed_channels"] == 0
    # Even without the divergence the compressor is led by what the renderer needs.
    assert all(parameter.grad is not None for parameter in stage.compressor.parameters())
    assert not torch.equal(stage.compressor.channel_std, before)
    assert found.metrics["flow"] * found.num_samples == pytest.approx(found.total.item(), rel=1e-5)


def test_a_compressor_that_was_trained_with_the_encoder_is_kept(root: Path, tmp_path: Path) -> None:
    stage = prepare("renderer", root, tmp_path, "settings.drop_plan=0")
    assert isinstance(stage, RendererStage)
    for_batch, for_loss = generators(0)
    stage.loss(stage.batch(0, for_batch, torch.device("cpu")), for_loss).total.backward()
    assert "compressor" not in stage.modules()
    assert stage.transformer.semantic_embedding is not None
    assert stage.transformer.semantic_embedding.weight.grad is not None
    runs = semantic_runs(root)
    kept, trained = stage.compressor, runs / "semantic-encoder" / "model" / "compressor"
    others = dict(load_strictly(SemanticCompressor, trained, torch.float32).named_parameters())
    assert all(torch.equal(parameter, others[name]) for name, parameter in kept.named_parameters())
    features = ArrayCache.open(runs / "semantic-latents").select(ARRAY, range(6)).float()
    plans = kept.encode(features).flatten(0, -2)
    torch.testing.assert_close(plans.mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(plans.std(dim=0, correction=0), torch.ones(4), atol=1e-3, rtol=0)


def test_semantic_tokens_begin_as_the_nearest_to_tokens_of_clean_latents(root: Path, tmp_path: Path) -> None:
    stage = prepare("renderer", root, tmp_path)
    assert isinstance(stage, RendererStage)
    projection = stage.transformer.semantic_embedding
    assert projection is not None
    plans = stage.compressor.encode(stage.cache.select(ARRAY, range(6)).float())
    clean = stage.cache.select("clean", range(6)).float()
    channels = torch.zeros(6, stage.transformer.config.in_channels, *clean.shape[2:])
    channels[:, : clean.shape[1]] = clean
    with torch.no_grad():
        tokens = stage.transformer.patch_embedding(channels)
        # Slices have their centres at 2, 6, 10 and 14 eighths of a second, and 4 frames make a latent frame.
        targets = torch.stack([tokens[:, :, frame] for frame in (1, 2, 3, 4)], dim=2)
        cells = targets.unflatten(4, (plans.shape[3], -1)).unflatten(3, (plans.shape[2], -1)).mean(dim=(4, 6))
        errors = projection(plans) - cells.permute(0, 2, 3, 4, 1)
    # What least squares leaves is orthogonal to all that it fits with.
    assert errors.square().mean() < 0.99 * cells.var()
    torch.testing.assert_close(errors.flatten(0, 3).mean(dim=0), torch.zeros(errors.shape[-1]), atol=1e-4, rtol=0)
    products = plans.flatten(0, 3).T @ errors.flatten(0, 3) / errors[..., 0].numel()
    torch.testing.assert_close(products, torch.zeros_like(products), atol=1e-4, rtol=0)


def test_encoder_and_compressor_learn_from_what_plans_tell(root: Path, tmp_path: Path) -> None:
    stage = prepare("semantic-encoder", root, tmp_path, "settings.kl_weight=0")
    assert isinstance(stage, EncoderStage)
    for_batch, for_loss = generators(0)
    batch = stage.batch(0, for_batch, torch.device("cpu"))
    stage.loss(batch, for_loss).total.backward()
    assert all(parameter.grad is not None for parameter in stage.compressor.parameters())


def test_pictures_and_maps_of_a_batch_are_moved_alike(root: Path, tmp_path: Path) -> None:
    stage = prepare("semantic-encoder", root, tmp_path, "settings.batch_size=16")
    assert isinstance(stage, EncoderStage)
    batches = [stage.batch(step, generators(step)[0], torch.device("cpu")) for step in (0, 0, 1)]
    for batch in batches:
        red = (batch.video[:, 0].unflatten(1, (-1, 2)) + 1) / 2
        rows, columns = batch.maps.shape[2:4]
        pooled = red.unflatten(3, (rows, -1)).unflatten(5, (columns, -1)).mean(dim=(4, 6))
        torch.testing.assert_close(batch.maps[..., 0], pooled[:, :, 0])
    assert torch.equal(batches[0].video, batches[1].video)
    assert not torch.equal(batches[0].video, batches[2].video)


def test_labels_count_where_they_are_shown() -> None:
    logits = torch.full((2, 1, 1, 3, 4), 0.0)
    logits[0, 0, 0, 0, 1] = 50.0  # right where it is shown
    logits[0, 0, 0, 1, 2] = logits[1, ..., 3] = 50.0  # wrong where it is not shown, and everywhere
    shown = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.0]]).view(2, 1, 1, 3)
    scores = score_labels(logits, torch.tensor([1, 1]), shown)
    # Half a place counts half.
    torch.testing.assert_close(scores.losses, torch.tensor([0.0, 25.0]))
    torch.testing.assert_close(scores.right, torch.tensor(1 / 1.5))


def test_the_picture_of_a_clip_is_given_or_not(root: Path, tmp_path: Path) -> None:
    losses = []
    for share in (0, 1):
        stage = prepare(
            "renderer", root, tmp_path / str(share), f"settings.image_share={share}", "settings.drop_plan=1"
        )
        assert isinstance(stage, RendererStage)
        for_batch, for_loss = generators(0)
        batch = stage.batch(0, for_batch, torch.device("cpu"))
        assert batch.has_image.tolist() == [bool(share)] * 2
        losses.append(stage.loss(batch, for_loss).total.item())
    assert losses[0] != losses[1]


def test_texts_that_were_embedded_before_need_no_text_encoder(root: Path, tmp_path: Path) -> None:
    backbone = smoke_runs(root) / "backbone"
    given = [
        f"dataset={semantic_runs(root) / 'semantic-frames'}",
        f"autoencoder={smoke_runs(root) / 'autoencoder'}",
        f"semantic_encoder={semantic_runs(root) / 'semantic-encoder'}",
        f"text_encoder={backbone}",
        "device=cpu",
    ]
    latents = tmp_path / "latents"
    precompute_latents(resolve_recipe("smoke-semantic-latents", given, SemanticLatentsRecipe, "precompute"), latents)
    losses = []
    for cache in (latents, semantic_runs(root) / "semantic-latents"):
        given = [*settings(root, "renderer"), "settings.segment_share=1"]
        recipe = resolve_training_recipe("smoke-renderer", given)
        assert isinstance(recipe, RendererRecipe)
        stage = prepare_stage(replace(recipe, latents=cache), tmp_path / cache.name, None, ignore_progress).stage
        assert isinstance(stage, RendererStage)
        assert ("text_encoder" in stage.modules()) == (cache != latents)
        losses.append(stage.loss(stage.batch(0, generators(0)[0], torch.device("cpu")), generators(0)[1]).total.item())
        stage.export(tmp_path / "model" / cache.name)
    # Embeddings are kept in half precision.
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for part in ("text_encoder", "tokenizer"):
        assert list((tmp_path / "model" / "latents" / part).iterdir())


def test_the_planner_leaves_the_parts_of_the_renderer_alone(root: Path, tmp_path: Path) -> None:
    stage = prepare("planner", root, tmp_path, "settings.crop_share=0")
    assert isinstance(stage, PlannerStage)
    assert not any(parameter.requires_grad for parameter in stage.compressor.parameters())
    assert isinstance(stage.text, EncodedText)
    assert not any(parameter.requires_grad for parameter in stage.text.text_encoder.parameters())
    plans = stage.batch(0, generators(0)[0], torch.device("cpu")).plans
    assert plans.shape == (2, 4, 2, 2, 4)


def test_a_planner_meets_all_lengths(root: Path, tmp_path: Path) -> None:
    stage = prepare("planner", root, tmp_path, "settings.crop_share=1")
    assert isinstance(stage, PlannerStage)
    batches = [stage.batch(step, generators(step)[0], torch.device("cpu")) for step in range(30)]
    assert {batch.plans.shape[1] for batch in batches} == {1, 2, 3, 4}
    shortest = min(batches, key=lambda batch: batch.plans.shape[1])
    assert torch.isfinite(stage.loss(shortest, generators(0)[1]).total)
    assert {len(batch.texts.places) for batch in batches} == {1, 2, 3, 4}  # whole, or a text for each slice


def test_latents_take_the_place_of_features_and_belong_to_another_encoder(root: Path, tmp_path: Path) -> None:
    vae = smoke_runs(root) / "autoencoder" / "model" / "vae"
    frames = semantic_runs(root) / "semantic-frames"
    given = [f"dataset={frames}", f"autoencoder={vae}", f"semantic_encoder={vae}", "device=cpu"]
    precompute_latents(resolve_recipe("smoke-vae-plan-latents", given, SemanticLatentsRecipe, "precompute"), tmp_path)
    semantic = ArrayCache.open(semantic_runs(root) / "semantic-latents").arrays[ARRAY]
    # A plan of the same slices, rows and columns.
    assert ArrayCache.open(tmp_path).arrays[ARRAY].shape[:3] == semantic.shape[:3]
    with pytest.raises(ModelError, match="encoder"):
        PlannerPreparation(
            replace(smoke_planner(), latents=tmp_path),
            {name: semantic_runs(root) / "renderer" / "model" / name for name in ("compressor", "text_encoder")},
            print,
        )


def test_an_assembled_model_plans_and_renders(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """In files of half precision too, its plans are those of the encoder and compressor that were trained."""
    root = tmp_path_factory.getbasetemp()
    runs = semantic_runs(root)
    recipe = replace(
        smoke_semanticgen(),
        autoencoder=str(smoke_runs(root) / "autoencoder"),
        encoder=str(runs / "semantic-encoder"),
        renderer=str(runs / "renderer"),
        planner=str(runs / "planner"),
    )
    assemble_recipe(recipe, tmp_path / "model")
    assert describe_model(tmp_path / "model").license == "apache-2.0"
    pipeline = SemanticGenPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline("a red fox", seconds=2, generator=torch.Generator().manual_seed(0))
    assert made.clips[0].num_frames == 17
    again = pipeline("a blue fox", source=made.clips[0], generator=torch.Generator().manual_seed(0))
    assert again.plan.features.shape == made.plan.features.shape
    again.plan.check(made.plan.encoder, made.plan.compressor)
