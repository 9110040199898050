"""Caches of datasets follow the files: what is new or changed is encoded, and nothing stale is trained on."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sememe.data import manifest
from sememe.data.array_cache import ArrayCache
from sememe.data.manifest import MANIFEST_NAME, add_hashes, read_manifest, write_manifest, write_vap_data
from sememe.errors import InputError, RecipeError, VideoError
from sememe.files import hash_file
from sememe.training import dataset_clips
from sememe.training.dataset_clips import open_clips
from sememe.training.recipes import ClipFormat, WorldData
from sememe.workflows.precompute import Part, PrecomputeSummary, precompute_latents
from workflows.mean_arrays import MeansRecipe
from workflows.painted_videos import make_sample, paint

CLIPS = ClipFormat(num_frames=3, height=16, width=16)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        paint(folder / f"{number}.mp4", 50 * number)
    write_manifest([make_sample(f"{number}.mp4") for number in range(3)], folder / MANIFEST_NAME)
    return folder


def encode(data: Path, **options: Any) -> PrecomputeSummary:
    recipe = MeansRecipe(name="means", description="", clips=CLIPS, dataset=data, device="cpu")
    return precompute_latents(recipe, data.parent / "cache", **options)


def read_levels(data: Path) -> list[float]:
    """The level of the first frame of each clip, in tens."""
    cache = ArrayCache.open(data.parent / "cache")
    return cache.select("means", torch.arange(len(cache)))[:, 0, 0].div(10).round().tolist()


def test_a_changed_video_and_a_new_one_are_encoded_and_nothing_else_is(data: Path) -> None:
    first = encode(data)
    assert (first.num_new, first.num_unused, read_levels(data)) == ({"means": 3}, 0, [0, 5, 10])
    assert encode(data).num_new == {"means": 0}
    paint(data / "1.mp4", 200)
    paint(data / "3.mp4", 150)
    samples = [*read_manifest(data / MANIFEST_NAME), make_sample("3.mp4")]
    write_manifest(samples, data / MANIFEST_NAME)
    second = encode(data)
    assert (second.num_new, second.num_unused, second.num_clips) == ({"means": 2}, 1, 4)
    assert read_levels(data) == [0, 20, 10, 15]
    assert second.version != first.version, "a run must not go on with other clips"
    assert encode(data, prune=True).num_unused == 1
    assert encode(data).num_unused == 0
    assert read_levels(data) == [0, 20, 10, 15]
    # A caption alone makes other training data, too, and nothing to encode.
    write_manifest([replace(samples[0], caption="told"), *samples[1:]], data / MANIFEST_NAME)
    third = encode(data)
    assert (third.num_new, third.version != second.version) == ({"means": 0}, True)


def test_a_part_reads_its_own_videos_and_their_references_alone(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_and_note(path: Path) -> str:
        read.append(path.name)
        return hash_file(path)

    read: list[str] = []
    write_manifest(
        [make_sample("0.mp4"), make_sample("1.mp4"), make_sample("2.mp4", references=("0.mp4",))], data / MANIFEST_NAME
    )
    monkeypatch.setattr(manifest, "hash_file", hash_and_note)
    monkeypatch.setattr(dataset_clips, "_BLOCK", 1)
    encode(data, part=Part(2, 3))
    assert read == ["1.mp4"]
    encode(data, part=Part(3, 3))
    assert read == ["1.mp4", "2.mp4", "0.mp4"]
    encode(data)
    assert sorted(read[3:]) == ["0.mp4", "1.mp4", "2.mp4"]
    assert read_levels(data) == [0, 5, 10]


def test_damage_is_found_and_mended(data: Path) -> None:
    encode(data)
    (shard,) = (data.parent / "cache").glob("means-*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 4
    shard.write_bytes(content)
    with pytest.raises(InputError, match=rf"{shard.name} is damaged: its values are not those .* --verify"):
        read_levels(data)
    assert encode(data).damaged == (), "only what is read is known"
    mended = encode(data, verify=True)
    assert (mended.damaged, mended.num_new) == ((shard.name,), {"means": 3})
    assert read_levels(data) == [0, 5, 10]


def test_one_bad_video_in_a_hundred_is_left_out_and_more_stop(data: Path) -> None:
    (data / "bad.mp4").write_bytes((data / "0.mp4").read_bytes()[:200])
    names = [f"{number % 3}.mp4" for number in range(99)]
    samples = [make_sample(name) for name in ["bad.mp4", *names]]
    write_vap_data(samples, data)
    (data / MANIFEST_NAME).unlink()
    summary = encode(data)
    assert (summary.num_clips, summary.num_new) == (99, {"means": 3})
    (left_out,) = summary.quarantine
    assert "bad.mp4" in left_out.reason
    quarantine = data.parent / "cache" / "quarantine.jsonl"
    assert json.loads(quarantine.read_text())["reason"] == left_out.reason
    assert len(ArrayCache.open(data.parent / "cache")) == 99
    write_vap_data([*samples, make_sample("gone.mp4")], data)
    with pytest.raises(InputError, match=r"2 of 101 videos cannot be used, more than the 1% .*gone\.mp4"):
        encode(data)
    paint(data / "bad.mp4", 100)
    write_vap_data(samples, data)
    assert (encode(data).quarantine, quarantine.exists()) == ((), False)


def test_scores_choose_videos(data: Path) -> None:
    scores = (20.0, 80.0, None)
    samples = [
        replace(each, score=score) for each, score in zip(read_manifest(data / MANIFEST_NAME), scores, strict=True)
    ]
    write_manifest(samples, data / MANIFEST_NAME)
    recipe = MeansRecipe(name="means", description="", clips=CLIPS, dataset=data, device="cpu", min_score=50.0)
    assert precompute_latents(recipe, data.parent / "cache").num_new == {"means": 2}
    assert read_levels(data) == [5, 10]
    with pytest.raises(RecipeError, match="min_score has no effect on clips of the world"):
        replace(recipe, dataset=None)


def test_a_video_must_be_the_one_of_the_manifest(data: Path) -> None:
    write_manifest(add_hashes(read_manifest(data / MANIFEST_NAME), data), data / MANIFEST_NAME)
    recipe = MeansRecipe(name="means", description="", clips=CLIPS, dataset=data)
    clips = open_clips(CLIPS, recipe.data, data)
    assert np.array_equal(clips.first_frame(2), clips.frames(2)[0])
    paint(data / "2.mp4", 1)
    changed = open_clips(CLIPS, recipe.data, data)
    with pytest.raises(VideoError, match=r"2\.mp4 is not the file that the manifest describes"):
        changed.frames(2)


def test_videos_are_encoded_at_the_size_and_length_of_their_bucket(data: Path) -> None:
    # At 8 frames a second, of which every second is taken.
    paint(data / "3.mp4", 150, num_frames=10, size=(16, 24))
    paint(data / "4.mp4", 200, num_frames=9, size=(32, 48))
    paint(data / "5.mp4", 100, num_frames=4, size=(32, 48))
    write_manifest([make_sample(f"{number}.mp4") for number in range(6)], data / MANIFEST_NAME)
    buckets = ClipFormat(buckets=("2x16x16", "5x16x24", "2x32x48"), sampling="fps", fps=4)
    recipe = MeansRecipe(name="means", description="", clips=buckets, dataset=data, device="cpu", batch_size=4)
    assert precompute_latents(recipe, data.parent / "cache").num_new == {"means": 6}
    cache = ArrayCache.open(data.parent / "cache")
    assert cache.buckets == ("2x16x16",) * 3 + ("5x16x24",) * 2 + ("2x32x48",)
    assert cache.arrays["means"].shapes == ((2, 3), (5, 3))
    clips = open_clips(buckets, recipe.data, data)
    assert [clips.frames(index).shape[:3] for index in (0, 4, 5)] == [(2, 16, 16), (5, 16, 24), (2, 32, 48)]
    means = cache.select("means", [3, 4])[..., 0]
    # The speed is kept: from 150 to 180 in ten frames, of which the last one taken is the ninth.
    assert means[0].tolist() == pytest.approx([150 + 30 / 9 * frame for frame in (0, 2, 4, 6, 8)], abs=3)
    with pytest.raises(RecipeError, match=r"clips\.sampling must be fps or first"):
        replace(buckets, sampling="even")
    with pytest.raises(RecipeError, match=r"clips\.buckets have no effect on clips of data\.kind scripts"):
        open_clips(buckets, WorldData(kind="scripts", clips_per_scene=1), None)


def test_listed_references_are_kept_with_the_clips(data: Path) -> None:
    samples = [make_sample("0.mp4", references=("2.mp4", "gone.mp4")), make_sample("1.mp4"), make_sample("2.mp4")]
    write_vap_data(samples, data)
    (data / MANIFEST_NAME).unlink()
    encode(data)
    assert ArrayCache.open(data.parent / "cache").references == ((2,), (), ())


def test_segments_are_kept_where_time_is(data: Path) -> None:
    segments = ((0.2, "a wall"), (0.5, "a wall; it glows"))
    samples = [replace(make_sample("0.mp4"), segments=segments), make_sample("1.mp4")]
    write_manifest(samples, data / MANIFEST_NAME)
    for clips, kept in ((replace(CLIPS, sampling="fps"), segments), (replace(CLIPS, sampling="even"), ())):
        recipe = MeansRecipe(name="means", description="", clips=clips, dataset=data, device="cpu")
        precompute_latents(recipe, data.parent / clips.sampling)
        item, other = ArrayCache.open(data.parent / clips.sampling).items
        assert tuple(zip(item.segment_ends, item.segment_captions, strict=True)) == kept
        assert other.segment_captions == ()


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_a_cluster_needs_ray(data: Path) -> None:
    with pytest.raises(RecipeError, match=r"pip install sememe\[ray\]"):
        encode(data, ray="auto")
