import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sememe.backbones.autoencoder import encode_video, frames_to_video
from sememe.backbones.first_frame import encode_first_frame
from sememe.checkpoints.components import load_component
from sememe.checkpoints.fingerprint import fingerprint_encoder, fingerprint_model
from sememe.data.array_cache import ArrayCache
from sememe.data.cache_index import ClipItem
from sememe.data.manifest import VideoSample, write_manifest, write_vap_data
from sememe.errors import InputError, ModelError, RecipeError
from sememe.events import Progress
from sememe.training.clips import WorldClips, render_item, world_item
from sememe.training.dataset_clips import open_clips
from sememe.training.recipes import LatentsRecipe, Regeneration, WorldData
from sememe.training.run_record import read_run
from sememe.video import write_clip
from sememe.video_as_prompt.stages import LatentSource
from sememe.workflows import precompute
from sememe.workflows.precompute import Part, precompute_latents
from sememe.workflows.train import resolve_training_recipe, train_recipe
from sememe.world import conditions
from workflows.smoke_runs import latents_recipe, smoke_runs


@pytest.fixture
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smoke_runs(tmp_path_factory.getbasetemp())


@torch.no_grad()
def test_latents_are_those_of_the_pipeline(runs: Path) -> None:
    cache = ArrayCache.open(runs / "latents")
    vae = load_component("vae", runs / "autoencoder" / "model" / "vae")
    assert isinstance(cache, LatentSource)
    assert len(cache) == 308
    assert set(cache.conditions) == set(conditions())
    for index in (0, 77, 307):
        item = world_item(index, WorldData(clips_per_scene=154))
        rendered = render_item(item, num_frames=9, size=16)
        video = frames_to_video(rendered.clip.frames[None])
        # The size of a batch changes the rounding.
        assert torch.allclose(cache.select("clean", torch.tensor([index])).float(), encode_video(vae, video), atol=2e-3)
        first = encode_first_frame(vae, video[:, :, 0], 9, "repeat").half()
        assert torch.allclose(cache.select("first_frame", torch.tensor([index])), first, atol=1e-3)
        assert (cache.conditions[index], cache.scenes[index]) == (item.condition, str(item.scene))
        assert (cache.captions[index], cache.full_captions[index]) == (rendered.caption, rendered.full_caption)
    assert {item.condition for item in cache.items if item.split == "unseen"} == set(conditions(split="unseen"))
    fingerprint = fingerprint_encoder(vae)
    assert cache.arrays["clean"].made_by == {"autoencoder": fingerprint}
    assert cache.arrays["first_frame"].made_by == {"autoencoder": fingerprint, "first_frame_fill": "repeat"}
    assert cache.version == f"{cache.origin}, 308 clips"
    assert cache.origin == "world 2, 9 frames of 16x16 at 8 fps, 154 clips a scene"


def test_broken_off_work_is_continued(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precompute, "_SHARD_BYTES", 10 * 2 * 4 * 3 * 4 * 4)
    recipe = latents_recipe(runs, "data.num_clips=48", "batch_size=8")

    def break_off(progress: Progress) -> None:
        if progress.stage == "encoding clean" and progress.step >= 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        precompute_latents(recipe, tmp_path, break_off)
    with pytest.raises(InputError, match="is not finished"):
        ArrayCache.open(tmp_path)
    seen: list[Progress] = []
    summary = precompute_latents(recipe, tmp_path, seen.append)
    assert (summary.num_clips, summary.num_new) == (48, {"first_frame": 0, "clean": 28})
    assert next(progress.step for progress in seen if progress.stage == "encoding clean") == 20
    whole, parts = ArrayCache.open(runs / "latents"), ArrayCache.open(tmp_path)
    assert parts.items == whole.items[:48]
    one, two = (cache.select("clean", torch.arange(48)) for cache in (parts, whole))
    assert torch.allclose(one, two, atol=1e-3)
    assert precompute_latents(recipe, tmp_path).num_new["clean"] == 0
    with pytest.raises(RecipeError, match="made with first_frame_fill repeat, but grey"):
        precompute_latents(replace(recipe, first_frame_fill="grey"), tmp_path)


def test_parts_share_the_work(runs: Path, tmp_path: Path) -> None:
    recipe = latents_recipe(runs, "data.num_clips=10", "batch_size=4")
    done = [precompute_latents(recipe, tmp_path, part=Part.parse(text)).num_new for text in ("1/3", "2/3", "3/3")]
    assert [each["clean"] for each in done] == [3, 3, 4]
    assert sum(each["first_frame"] for each in done) == 1
    with pytest.raises(InputError, match="is not finished"):
        ArrayCache.open(tmp_path)
    assert precompute_latents(recipe, tmp_path).num_new == {"first_frame": 0, "clean": 0}
    whole, parts = ArrayCache.open(runs / "latents"), ArrayCache.open(tmp_path)
    assert parts.items == whole.items[:10]
    one, two = (cache.select("clean", torch.arange(10)) for cache in (parts, whole))
    assert torch.allclose(one, two, atol=1e-3)


def test_a_part_lists_its_own_clips_alone(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[int] = []
    find = WorldClips.item

    def list_clip(clips: WorldClips, index: int) -> ClipItem:
        listed.append(index)
        return find(clips, index)

    monkeypatch.setattr(WorldClips, "item", list_clip)
    summary = precompute_latents(latents_recipe(runs, "data.num_clips=10"), tmp_path, part=Part(2, 3))
    assert (listed, summary.num_clips, summary.num_unused) == ([3, 4, 5], 3, 0)


def test_a_part_does_not_prune_what_others_need(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no part with prune, got 2/3"):
        precompute_latents(latents_recipe(runs, "data.num_clips=10"), tmp_path, part=Part(2, 3), prune=True)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0"])
def test_there_is_no_such_part(text: str) -> None:
    with pytest.raises(InputError, match="expected a part"):
        Part.parse(text)


def test_a_trained_decoder_leaves_latents_valid(runs: Path, tmp_path: Path) -> None:
    vae = load_component("vae", runs / "autoencoder" / "model" / "vae")
    before = fingerprint_encoder(vae)
    assert before == fingerprint_encoder(load_component("vae", runs / "autoencoder" / "start" / "vae"))
    assert before == fingerprint_encoder(load_component("vae", runs / "model" / "vae")), (
        "half precision changes nothing"
    )
    with torch.no_grad():
        vae.refiner.conv_out.bias.add_(1)
    assert fingerprint_encoder(vae) == before
    with torch.no_grad():
        vae.encoder.bias.add_(1)
    vae.save_pretrained(tmp_path / "vae")
    shutil.copytree(runs / "latents", tmp_path / "latents")
    with pytest.raises(RecipeError, match="made with autoencoder"):
        precompute_latents(with_autoencoder(runs, tmp_path / "vae"), tmp_path / "latents")


def test_generations_are_near_the_clips_and_train_the_decoder(runs: Path, tmp_path: Path) -> None:
    settings = Regeneration(model=str(runs / "model"), num_inference_steps=3, max_strength=0.5)
    recipe = replace(latents_recipe(runs, "data.num_clips=6", "batch_size=3"), regeneration=settings)
    precompute_latents(recipe, tmp_path / "generations")
    precompute_latents(recipe, tmp_path / "again")
    found, again, clean = (
        ArrayCache.open(each) for each in (tmp_path / "generations", tmp_path / "again", runs / "latents")
    )
    every = torch.arange(6)
    generated, latents = found.select("generated", every), clean.select("clean", every)
    assert torch.equal(generated, again.select("generated", every))
    assert found.items == clean.items[:6]
    error = (generated - latents).float().std()
    # The untrained model leaves the noise where it is: at these strengths, with shift 3, at most three quarters.
    assert 0.1 < error < 2 * latents.float().std()
    given = ["training.device=cpu", f"generations={tmp_path / 'again'}"]
    train_recipe(resolve_training_recipe("smoke-autoencoder", given), tmp_path / "run", init_from=str(runs / "model"))
    record = read_run(tmp_path / "run")
    assert record is not None
    assert fingerprint_model(runs / "model").sha256[:16] in record.inputs["generations"]
    other = resolve_training_recipe("smoke-autoencoder", [*given, "network.num_start_clips=4"])
    with pytest.raises(RecipeError, match="expected generations of the clips of world"):
        train_recipe(other, tmp_path / "other")


def with_autoencoder(runs: Path, folder: Path) -> LatentsRecipe:
    return replace(latents_recipe(runs), autoencoder=str(folder))


@pytest.mark.parametrize("layout", ["manifest", "vap"])
def test_a_dataset_of_videos(layout: str, runs: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "videos").mkdir(parents=True)
    samples = []
    for index in range(4):
        clip = render_item(world_item(index * 9), num_frames=12, size=(20, 30)).clip
        write_clip(clip, data / "videos" / f"{index}.mp4")
        samples.append(
            VideoSample(
                path=f"videos/{index}.mp4",
                caption=f"caption {index}",
                condition=f"kind {index % 2}",
                **({"scene": f"scene {index}", "full_caption": "told"} if layout == "manifest" else {}),  # type: ignore[arg-type]
            )
        )
    if layout == "manifest":
        write_manifest(samples, data / "manifest.jsonl")
    else:
        write_vap_data(samples, data)
    recipe = latents_recipe(runs, f"dataset={data}")
    summary = precompute_latents(recipe, tmp_path / "latents")
    assert (summary.num_clips, summary.num_new) == (4, {"first_frame": 4, "clean": 4})
    cache = ArrayCache.open(tmp_path / "latents")
    assert cache.conditions == ("kind 0", "kind 1", "kind 0", "kind 1")
    assert cache.captions[2] == "caption 2"
    assert cache.scenes[2] == ("scene 2" if layout == "manifest" else "videos/2.mp4")
    assert cache.full_captions[2] == ("told" if layout == "manifest" else "caption 2")
    assert cache.arrays["clean"].shape == (4, 3, 4, 4)
    frames = open_clips(recipe.clips, recipe.data, recipe.dataset).frames(1)
    vae = load_component("vae", runs / "autoencoder" / "model" / "vae")
    with torch.no_grad():
        expected = encode_video(vae, frames_to_video(frames[None]))
    assert np.allclose(cache.select("clean", torch.tensor([1])).float()[0], expected[0], atol=2e-3)
    with pytest.raises(RecipeError, match="made with clips"):
        precompute_latents(latents_recipe(runs), tmp_path / "latents")


def test_what_is_not_there(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither"):
        precompute_latents(with_autoencoder(runs, tmp_path / "none"), tmp_path / "latents")
    with pytest.raises(ModelError, match="holds none"):
        precompute_latents(with_autoencoder(runs, runs / "latents"), tmp_path / "latents")
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=r"expected manifest.jsonl or vap_data.csv"):
        precompute_latents(latents_recipe(runs, f"dataset={tmp_path / 'data'}"), tmp_path / "latents")
