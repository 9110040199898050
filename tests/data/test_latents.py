from pathlib import Path

import numpy as np
import pytest
import torch

from sememe.data.latents import CacheOrigin, LatentCache, LatentCacheWriter, LatentItem
from sememe.errors import InputError, RecipeError

ORIGIN = CacheOrigin(dataset="world 1", autoencoder="abc")
SHAPE = (4, 2, 3, 3)
SHARD_BYTES = 3 * 2 * 4 * 2 * 3 * 3
"""Three tensors."""

ITEMS = [
    LatentItem(condition=f"c{n % 2}", scene=f"s{n // 2}", first_frame=f"s{n // 2}", caption=f"n{n}", full_caption="f")
    for n in range(8)
]
CLEAN = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0)).half()
NAMES = [f"s{n}" for n in (2, 0, 3, 1)]
CONDITION = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1)).half()


def write(folder: Path) -> None:
    writer = LatentCacheWriter(folder, ORIGIN, shard_bytes=SHARD_BYTES)
    writer.append_first_frames(NAMES[writer.num_first_frames :], CONDITION[writer.num_first_frames :])
    for start in range(writer.num_items, 8, 2):
        writer.append_clips(ITEMS[start : start + 2], CLEAN[start : start + 2].float())
    writer.finish()


def assert_complete(folder: Path) -> LatentCache:
    cache = LatentCache.open(folder, ORIGIN)
    assert cache.items == tuple(ITEMS)
    assert torch.equal(cache.clean, CLEAN)
    assert torch.equal(cache.condition, CONDITION)
    return cache


def test_latents_are_found_by_item(tmp_path: Path) -> None:
    write(tmp_path)
    cache = assert_complete(tmp_path)
    indices = np.array([5, 0, 5])
    assert torch.equal(cache.select_clean(indices), CLEAN[[5, 0, 5]])
    assert torch.equal(cache.select_condition(indices), CONDITION[[0, 1, 0]])
    assert torch.equal(cache.select_clean(torch.tensor([7])), CLEAN[7:])
    assert cache.conditions == ("c0", "c1") * 4
    assert cache.scenes == ("s0", "s0", "s1", "s1", "s2", "s2", "s3", "s3")
    assert cache.captions == tuple(f"n{n}" for n in range(8))
    assert cache.full_captions == ("f",) * 8
    assert len(list(tmp_path.glob("clean_*.safetensors"))) == 3
    assert cache.to("cpu") is cache


def test_some_conditions_alone(tmp_path: Path) -> None:
    write(tmp_path)
    cache = LatentCache.open(tmp_path)
    subset = cache.only({"c1", "another"})
    assert (len(subset), set(subset.conditions), subset.scenes) == (4, {"c1"}, ("s0", "s1", "s2", "s3"))
    assert subset.captions == ("n1", "n3", "n5", "n7")
    indices = torch.tensor([3, 0])
    assert torch.equal(subset.select_clean(indices), CLEAN[[7, 1]])
    assert torch.equal(subset.select_condition(np.array([3, 0])), cache.select_condition(torch.tensor([7, 1])))
    with pytest.raises(InputError, match="no item"):
        cache.only({"c2"})


def test_an_interrupted_writer_goes_on_after_the_last_shard(tmp_path: Path) -> None:
    first = LatentCacheWriter(tmp_path, ORIGIN, shard_bytes=SHARD_BYTES)
    first.append_clips(ITEMS[:5], CLEAN[:5])
    del first
    # A shard whose index entry was not written in time.
    (tmp_path / "clean_00001.safetensors").write_bytes(b"cut")
    again = LatentCacheWriter(tmp_path, ORIGIN, shard_bytes=SHARD_BYTES)
    assert (again.num_items, again.num_first_frames) == (3, 0)
    before = (tmp_path / "clean_00000.safetensors").stat().st_mtime_ns
    write(tmp_path)
    assert_complete(tmp_path)
    assert (tmp_path / "clean_00000.safetensors").stat().st_mtime_ns == before


def test_a_cache_can_grow_after_it_was_finished(tmp_path: Path) -> None:
    writer = LatentCacheWriter(tmp_path, ORIGIN, shard_bytes=SHARD_BYTES)
    writer.append_first_frames(NAMES, CONDITION)
    writer.append_clips(ITEMS[:4], CLEAN[:4])
    writer.finish()
    assert len(LatentCache.open(tmp_path)) == 4
    write(tmp_path)
    assert_complete(tmp_path)


def test_another_origin_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    other = CacheOrigin(dataset="world 1", autoencoder="xyz")
    with pytest.raises(RecipeError, match="made with autoencoder abc, but xyz is expected"):
        LatentCacheWriter(tmp_path, other)
    with pytest.raises(RecipeError, match="made with dataset world 1, but world 2 is expected"):
        LatentCache.open(tmp_path, CacheOrigin(dataset="world 2", autoencoder="abc"))
    with pytest.raises(RecipeError, match="float16 latents, not bfloat16"):
        LatentCacheWriter(tmp_path, ORIGIN, dtype="bfloat16")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="shard_bytes must be above 0 and below"):
        LatentCacheWriter(tmp_path, ORIGIN, shard_bytes=2**29)
    writer = LatentCacheWriter(tmp_path, ORIGIN)
    writer.append_clips(ITEMS[:1], CLEAN[:1])
    with pytest.raises(InputError, match="one shape"):
        writer.append_clips(ITEMS[1:2], torch.zeros(1, 4, 2, 3, 4))
    with pytest.raises(InputError, match=r"expected latents of shape \(2, C, T, H, W\)"):
        writer.append_clips(ITEMS[1:3], CLEAN[:1])
    with pytest.raises(InputError, match="finite in float16"):
        writer.append_clips(ITEMS[1:2], torch.full((1, *SHAPE), 1e6))
    with pytest.raises(InputError, match="never added, such as 's0'"):
        writer.finish()
    with pytest.raises(InputError, match="not finished: it lacks first frame 's0'"):
        LatentCache.open(tmp_path)


def test_bfloat16_keeps_its_range(tmp_path: Path) -> None:
    writer = LatentCacheWriter(tmp_path, ORIGIN, dtype="bfloat16")
    writer.append_first_frames(["s0"], torch.full((1, *SHAPE), 1e6))
    writer.append_clips(ITEMS[:1], torch.full((1, *SHAPE), 1e6))
    writer.finish()
    cache = LatentCache.open(tmp_path)
    assert cache.clean.dtype == torch.bfloat16
    assert float(cache.clean[0, 0, 0, 0, 0]) == pytest.approx(1e6, rel=0.01)


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no latent cache"):
        LatentCache.open(tmp_path)
    write(tmp_path)
    shard = tmp_path / "clean_00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-8])
    with pytest.raises(InputError, match=r"clean_00001\.safetensors is missing or damaged"):
        LatentCache.open(tmp_path)
    shard.write_bytes((tmp_path / "clean_00002.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"should hold float16 latents of shape \(3, "):
        LatentCache.open(tmp_path)
    shard.unlink()
    with pytest.raises(InputError, match="is missing or damaged"):
        LatentCache.open(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(InputError, match=r"index\.json cannot be read"):
        LatentCache.open(tmp_path)
