from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import Tensor

from sememe.data.array_cache import ArrayCache
from sememe.data.array_writer import ArrayCacheWriter, remove_damaged
from sememe.data.cache_index import INDEX_NAME, ClipItem
from sememe.errors import InputError, RecipeError

ITEMS = [
    ClipItem(
        clip=f"{n}",
        condition=f"c{n % 2}",
        scene=f"s{n // 2}",
        first_frame=f"s{n // 2}",
        caption=f"n{n}",
        full_caption="f",
        split="train" if n < 6 else "test",
    )
    for n in range(8)
]
SHARD_BYTES = 3 * 2 * 4 * 2 * 3 * 3
"""Three clean latents."""


class Encoder:
    """Random values of a shape, by the field of the items."""

    def __init__(self, name: str, key: str, shape: tuple[int, ...], made_by: Mapping[str, str] | None = None) -> None:
        self.name, self.key, self.made_by = name, key, {"weights": "abc"} if made_by is None else made_by
        keys = dict.fromkeys(getattr(item, key) for item in ITEMS)
        self.values = torch.randn(len(keys), *shape, generator=torch.Generator().manual_seed(len(name))).half()
        self.entries = {name: place for place, name in enumerate(keys)}

    def list_entries(self, items: Mapping[int, ClipItem]) -> Mapping[str, Any]:
        return self.entries

    def preprocess(self, entries: Sequence[int]) -> Tensor:
        return torch.tensor(entries)

    def encode(self, inputs: Tensor) -> Tensor:
        return self.values[inputs]


CLEAN = Encoder("clean", "clip", (4, 2, 3, 3))
FIRST = Encoder("first_frame", "first_frame", (4, 1, 3, 3))
ENCODERS = (FIRST, CLEAN)


def write(folder: Path | str, encoders: Sequence[Encoder] = ENCODERS) -> None:
    writer = ArrayCacheWriter(folder, "world 1", shard_bytes=SHARD_BYTES)
    for encoder in encoders:
        present = writer.begin(encoder)
        for key in [key for key in encoder.entries if key not in present]:
            writer.append(encoder.name, [key], encoder.encode(torch.tensor([encoder.entries[key]])))
    writer.finish(ITEMS, "world 1, 8 clips")


def list_shards(folder: Path, name: str = "clean") -> list[Path]:
    return sorted(folder.glob(f"{name}-*.safetensors"))


def assert_complete(folder: Path) -> ArrayCache:
    cache, every = ArrayCache.open(folder), np.arange(8)
    assert cache.items == tuple(ITEMS)
    assert torch.equal(cache.select("clean", every), CLEAN.values)
    assert torch.equal(cache.select("first_frame", every), FIRST.values[every // 2])
    return cache


def test_entries_are_found_by_item_and_by_key(tmp_path: Path) -> None:
    write(tmp_path)
    cache = assert_complete(tmp_path)
    assert {name: array.shape for name, array in cache.arrays.items()} == {
        "first_frame": (4, 1, 3, 3),
        "clean": (4, 2, 3, 3),
    }
    assert torch.equal(cache.select("clean", torch.tensor([5, 0, 5])), CLEAN.values[[5, 0, 5]])
    assert torch.equal(cache.read("first_frame", cache.places("first_frame", ["s3", "s0"])), FIRST.values[[3, 0]])
    with pytest.raises(InputError, match="no first_frame for 's9'"):
        cache.places("first_frame", ["s9"])
    assert cache.conditions == ("c0", "c1") * 4
    assert cache.scenes == ("s0", "s0", "s1", "s1", "s2", "s2", "s3", "s3")
    assert cache.captions == tuple(f"n{n}" for n in range(8))
    assert cache.full_captions == ("f",) * 8
    assert cache.splits == ("train",) * 6 + ("test",) * 2
    assert len(list_shards(tmp_path)) == 3
    assert cache.describe("clean") == {"clips": "world 1, 8 clips", "weights": "abc"}
    with pytest.raises(InputError, match="no depth"):
        cache.describe("depth")


def test_some_items_alone(tmp_path: Path) -> None:
    write(tmp_path)
    subset = ArrayCache.open(tmp_path).only([1, 3, 5, 7])
    assert (len(subset), set(subset.conditions), subset.captions) == (4, {"c1"}, ("n1", "n3", "n5", "n7"))
    assert torch.equal(subset.select("clean", torch.tensor([3, 0])), CLEAN.values[[7, 1]])
    assert torch.equal(subset.only([2]).select("clean", torch.tensor([0])), CLEAN.values[[5]])
    with pytest.raises(InputError, match="none of the requested clips"):
        subset.only([])


def test_an_interrupted_writer_goes_on_after_the_last_shard(tmp_path: Path) -> None:
    first = ArrayCacheWriter(tmp_path, "world 1", shard_bytes=SHARD_BYTES)
    first.begin(CLEAN)
    first.append("clean", list(CLEAN.entries)[:5], CLEAN.values[:5])
    with pytest.raises(InputError, match="not finished"):
        ArrayCache.open(tmp_path)
    # What a writer leaves that was killed while it wrote a shard.
    (tmp_path / ".clean-0.0.part.safetensors").write_bytes(b"cut")
    assert ArrayCacheWriter(tmp_path, "world 1", shard_bytes=SHARD_BYTES).begin(CLEAN) == {"0", "1", "2"}
    (first_shard,) = list_shards(tmp_path)
    before = first_shard.read_bytes()
    write(tmp_path)
    assert_complete(tmp_path)
    assert first_shard.read_bytes() == before


def test_slow_work_is_written_before_a_shard_is_full(tmp_path: Path) -> None:
    writer = ArrayCacheWriter(tmp_path, "world 1", flush_seconds=0)
    writer.begin(CLEAN)
    writer.append("clean", ["0", "1"], CLEAN.values[:2])
    assert ArrayCacheWriter(tmp_path, "world 1").begin(CLEAN) == {"0", "1"}


def test_writers_share_a_folder(tmp_path: Path) -> None:
    one, two = (ArrayCacheWriter(tmp_path, "world 1", shard_bytes=SHARD_BYTES) for _ in range(2))
    keys = list(CLEAN.entries)
    for writer, places in ((one, [0, 1, 2, 3]), (two, [3, 4, 5, 6, 7])):
        writer.begin(FIRST)
        writer.append("first_frame", list(FIRST.entries), FIRST.values)
        writer.begin(CLEAN)
        writer.append("clean", [keys[place] for place in places], CLEAN.values[places])
        writer.flush("clean")
    two.finish(ITEMS, "world 1, 8 clips")
    one.flush("first_frame")
    assert_complete(tmp_path)
    again = ArrayCacheWriter(tmp_path, "world 1")
    needed = {encoder.name: encoder.entries.keys() for encoder in ENCODERS}
    assert again.count_unused(needed) == 1 + len(FIRST.entries)
    again.prune(needed)
    assert_complete(tmp_path)
    assert ArrayCacheWriter(tmp_path, "world 1").count_unused(needed) == 0


def test_entries_that_nothing_needs_are_removed(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / ".clean-0.0.part.safetensors").write_bytes(b"cut")
    writer = ArrayCacheWriter(tmp_path, "world 1")
    untouched = list_shards(tmp_path, "first_frame")
    # The middle shard goes as a whole, the last in part.
    needed = {"clean": {"0", "1", "2", "7"}}
    assert writer.count_unused(needed) == 4
    kept = [ITEMS[0], ITEMS[7]]
    writer.finish(kept, "world 1, 2 clips")
    writer.prune(needed)
    cache = ArrayCache.open(tmp_path)
    assert set(cache.arrays["clean"].keys) == needed["clean"]
    assert torch.equal(cache.select("clean", [0, 1]), CLEAN.values[[0, 7]])
    assert list_shards(tmp_path, "first_frame") == untouched
    assert not list(tmp_path.glob(".*"))


def write_buckets(folder: Path | str) -> list[ClipItem]:
    """Write arrays of entries of two shapes; return the clips."""
    items = [replace(item, bucket="long" if number % 3 else "wide") for number, item in enumerate(ITEMS)]
    writer = ArrayCacheWriter(folder, "world 1", shard_bytes=SHARD_BYTES)
    writer.begin(CLEAN)
    for number, item in enumerate(items):
        values = CLEAN.values[number : number + 1]
        writer.append("clean", [item.clip], values if item.bucket == "long" else values.transpose(2, 4))
    writer.finish(items, "world 1, 8 clips")
    return items


@pytest.mark.parametrize("memory_bytes", [None, 0])
def test_entries_have_the_shape_of_their_bucket(tmp_path: Path, memory_bytes: int | None) -> None:
    items = write_buckets(tmp_path)
    cache = ArrayCache.open(tmp_path, memory_bytes=memory_bytes)
    assert cache.items == tuple(items)
    assert set(cache.arrays["clean"].shapes) == {(4, 2, 3, 3), (4, 3, 3, 2)}
    assert torch.equal(cache.select("clean", [7, 1, 7]), CLEAN.values[[7, 1, 7]])
    assert torch.equal(cache.only([6, 4]).select("clean", [0]), CLEAN.values[[6]].transpose(2, 4))
    with pytest.raises(InputError, match="expected clips of one size"):
        _ = cache.arrays["clean"].shape


def test_object_storage_is_read_entry_by_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    # As recipes hold it: a path has one slash.
    folder = Path("memory://caches/latents")
    write(folder)
    whole = ArrayCache.open(folder)
    assert torch.equal(whole.select("clean", range(8)), CLEAN.values)
    cache, num_read = ArrayCache.open("memory://caches/latents", memory_bytes=0), []
    read = MemoryFileSystem.cat_ranges

    def count(self: MemoryFileSystem, paths: list[str], starts: list[int], stops: list[int], **options: Any) -> Any:
        num_read.append(sum(stops) - sum(starts))
        return read(self, paths, starts, stops, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", count)
    assert torch.equal(cache.select("clean", [6, 0]), CLEAN.values[[6, 0]])
    assert num_read == [2 * 4 * 2 * 3 * 3 * 2], "two entries of two bytes a number, and nothing else"
    assert torch.equal(cache.select("first_frame", [6, 7]), FIRST.values[[3, 3]])
    name = next(shard for shard in MemoryFileSystem.store if "clean" in shard)
    content = bytearray(MemoryFileSystem.store[name].getvalue())
    content[-1] ^= 1
    MemoryFileSystem().pipe_file(name, bytes(content))
    with pytest.raises(InputError, match=r"memory://caches/latents/clean.* is damaged"):
        cache.select("clean", range(8))
    with pytest.raises(InputError, match="nowhere://"):
        ArrayCache.open("nowhere://caches")
    assert len(remove_damaged(folder)) == 1
    write(folder)
    assert torch.equal(ArrayCache.open(folder).select("clean", range(8)), CLEAN.values)


def test_listed_references_are_numbers_of_items(tmp_path: Path) -> None:
    # Of another condition, unknown, the item's own, and twice the same clip.
    lists = {0: ("1", "9", "0", "4"), 2: ("0", "4"), 4: ("6",)}
    items = [replace(item, references=lists.get(number, ())) for number, item in enumerate(ITEMS)]
    writer = ArrayCacheWriter(tmp_path, "world 1")
    writer.begin(CLEAN)
    writer.append("clean", list(CLEAN.entries), CLEAN.values)
    writer.finish(items, "world 1, 8 clips")
    cache = ArrayCache.open(tmp_path)
    assert cache.references == ((4,), (), (0, 4), (), (6,), (), (), ())
    assert cache.only([4, 2, 0]).references == ((), (2, 0), (0,))


def test_an_array_can_be_added_to_a_finished_cache(tmp_path: Path) -> None:
    write(tmp_path, [FIRST])
    assert list(ArrayCache.open(tmp_path).arrays) == ["first_frame"]
    write(tmp_path)
    assert_complete(tmp_path)


def test_another_origin_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(RecipeError, match="made with clips world 1, but world 2 is expected"):
        ArrayCacheWriter(tmp_path, "world 2")
    for made_by in ({"weights": "xyz"}, {"weights": "abc", "fill": "grey"}):
        with pytest.raises(RecipeError, match="is expected"):
            ArrayCacheWriter(tmp_path, "world 1").begin(Encoder("clean", "clip", (1,), made_by))
    with pytest.raises(RecipeError, match="float16, but bfloat16"):
        ArrayCacheWriter(tmp_path, "world 1", dtype="bfloat16").begin(CLEAN)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="shard_bytes must be above 0 and below"):
        ArrayCacheWriter(tmp_path, "world 1", shard_bytes=2**29)
    writer = ArrayCacheWriter(tmp_path, "world 1")
    writer.begin(CLEAN)
    writer.append("clean", ["0"], CLEAN.values[:1])
    with pytest.raises(InputError, match="expected 2 entries of clean, got 1"):
        writer.append("clean", ["1", "2"], CLEAN.values[:1])
    with pytest.raises(InputError, match="finite in float16"):
        writer.append("clean", ["1"], torch.full((1, 4, 2, 3, 3), 1e6))
    with pytest.raises(InputError, match="7 entries of clean were never added, such as '1'"):
        writer.finish(ITEMS, "8 clips")


def test_bfloat16_keeps_its_range(tmp_path: Path) -> None:
    writer = ArrayCacheWriter(tmp_path, "world 1", dtype="bfloat16")
    writer.begin(CLEAN)
    writer.append("clean", ["0"], torch.full((1, 2), 1e6))
    writer.finish(ITEMS[:1], "1 clip")
    values = ArrayCache.open(tmp_path).select("clean", torch.tensor([0]))
    assert values.dtype == torch.bfloat16
    assert float(values[0, 0]) == pytest.approx(1e6, rel=0.01)


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no cache"):
        ArrayCache.open(tmp_path)
    write(tmp_path)
    shard = list_shards(tmp_path)[1]
    content = shard.read_bytes()
    for damaged in (content[:-8], content[:-1] + bytes([content[-1] ^ 1])):
        shard.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{shard.name} is damaged"):
            ArrayCache.open(tmp_path)
        assert remove_damaged(tmp_path) == (shard.name,)
    shard.write_bytes(content[:-8])
    with pytest.raises(InputError, match=rf"{shard.name} is damaged: it has .* bytes instead of"):
        write(tmp_path)
    # The index says what is where, so that only a writer reads what shards say of themselves.
    shard.write_bytes(content.replace(b"weights", b"weighty"))
    assert remove_damaged(tmp_path) == (shard.name,)
    with pytest.raises(InputError, match=rf"{shard.name} cannot be read: there is no such file; encode"):
        ArrayCache.open(tmp_path)
    write(tmp_path)
    assert_complete(tmp_path)
    assert remove_damaged(tmp_path) == ()
    index = (tmp_path / INDEX_NAME).read_text()
    for damaged_index, message in (('{"format": 1}', "not of format 5"), (index.replace("n3", "n4"), "something else")):
        (tmp_path / INDEX_NAME).write_text(damaged_index)
        with pytest.raises(InputError, match=message):
            ArrayCache.open(tmp_path)
