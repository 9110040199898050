"""Encoding named arrays into a cache, entry by entry."""

import math
import secrets
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from sememe.data.array_shards import (
    DTYPES,
    SUFFIX,
    ArrayAbout,
    Entries,
    Shard,
    find_damaged,
    list_shards,
    read_values,
    write_shard,
)
from sememe.data.cache_index import ClipItem, has_index, make_index, read_index, sort_shards, write_index
from sememe.data.storage import Storage
from sememe.errors import InputError, RecipeError

_MAX_SHARD = 512 * 1024 * 1024

CacheDtype = Literal["float16", "bfloat16", "uint8"]


@runtime_checkable
class ArrayEncoder(Protocol):
    """Makes one named array.

    Attributes:
        name: Name of the array.
        key: The field of `ClipItem` that names a clip's entry.
        made_by: What the values depend on besides the clips: fingerprints of weights, settings.
    """

    name: str
    key: str
    made_by: Mapping[str, str]

    def list_entries(self, items: Mapping[int, ClipItem]) -> Mapping[str, Any]:
        """Inputs of `preprocess` for clips, by key, in order; clips are given by their numbers."""
        ...

    def preprocess(self, entries: Sequence[Any]) -> Entries:
        """A batch of inputs of the encoder, of clips of one bucket."""
        ...

    def encode(self, inputs: Entries) -> Entries:
        """The values of a batch."""
        ...


class ClipArray:
    """An array with an entry for each clip, stored as it is read; a base class of `ArrayEncoder`s."""

    key = "clip"

    def list_entries(self, items: Mapping[int, ClipItem]) -> Mapping[str, Any]:
        return {item.clip: index for index, item in items.items()}

    def encode(self, inputs: Entries) -> Entries:
        return inputs


class ArrayCacheWriter:
    """Writes a cache, or continues one: entries whose keys `begin` returns are already stored in its folder.

    Several writers may work in one folder; an entry that two of them encode is stored twice and read once.

    Args:
        folder: Folder of the cache, or its URL (see `data.storage`).
        origin: Identifies the kind of clips that keys refer to, such as how videos are read.
        dtype: Precision of the stored values; uint8 for integers from 0 to 255.
        shard_bytes: Size of one file, below 512 MiB.
        flush_seconds: Longest time between two files of an array.

    Raises:
        RecipeError: The folder holds arrays of other clips, or a shard would be too large.
        InputError: A shard is damaged; see `remove_damaged`.
    """

    def __init__(
        self,
        folder: Path | str,
        origin: str,
        *,
        dtype: CacheDtype = "float16",
        shard_bytes: int = 128 * 1024 * 1024,
        flush_seconds: float = 30.0,
    ) -> None:
        if not 0 < shard_bytes < _MAX_SHARD:
            raise RecipeError(f"shard_bytes must be above 0 and below {_MAX_SHARD}, got {shard_bytes}")
        self._storage, self._origin, self._dtype = Storage(folder), origin, dtype
        self._shard_bytes, self._flush_seconds = shard_bytes, flush_seconds
        self._storage.make()
        self._shards: dict[str, Shard] = {}
        if has_index(self._storage):
            index = read_index(self._storage)
            self._check_same("clips", index.origin, origin)
            # Only the headers of other shards need to be read.
            self._shards = {shard.name: shard for shard in index.shards}
        self._find_shards()
        self._abouts: dict[str, ArrayAbout] = {}
        self._pending: dict[tuple[str, tuple[int, ...]], dict[str, Tensor]] = defaultdict(dict)
        self._flushed: dict[str, float] = {}
        self._writer, self._num_written = secrets.token_hex(4), 0

    def begin(self, encoder: ArrayEncoder) -> frozenset[str]:
        """Begin an array, or continue it; return the keys that it has, those of other writers included.

        Raises `RecipeError` if the folder holds an array of that name that was made differently.
        """
        self._find_shards()
        made_by = dict(encoder.made_by)
        present = [shard for shard in self._shards.values() if shard.about.array == encoder.name]
        for about in {id(shard.about): shard.about for shard in present}.values():
            for name in sorted(about.made_by.keys() | made_by.keys()):
                self._check_same(name, about.made_by.get(name), made_by.get(name))
            self._check_same(f"{encoder.name} in", about.dtype, self._dtype)
        self._abouts[encoder.name] = ArrayAbout(
            origin=self._origin, array=encoder.name, key=encoder.key, made_by=made_by, dtype=self._dtype
        )
        self._flushed[encoder.name] = time.monotonic()
        return frozenset(key for shard in present for key in shard.keys)

    def append(self, name: str, keys: Sequence[str], values: Entries) -> None:
        """Add entries of one shape, (key, ...), to an array that was begun. Raises `InputError` for NaN or infinity."""
        about, shape = self._abouts[name], tuple(values.shape[1:])
        if len(keys) != len(values):
            raise InputError(f"expected {len(keys)} entries of {name}, got {len(values)}")
        stored = values.detach().to("cpu", DTYPES[about.dtype]).contiguous()
        if not torch.isfinite(stored).all():
            raise InputError(f"{name} must be finite in {about.dtype}; normalise it, or use bfloat16")
        pending = self._pending[name, shape]
        pending |= zip(keys, stored.unbind(), strict=True)
        while len(pending) >= self._count_per_shard(shape):
            self._write_shard(name, shape)
        if time.monotonic() - self._flushed[name] >= self._flush_seconds:
            self.flush(name)

    def flush(self, name: str) -> None:
        """Write the remaining entries of an array."""
        for array, shape in self._pending:
            while array == name and self._pending[array, shape]:
                self._write_shard(array, shape)

    def finish(self, items: Sequence[ClipItem], version: str) -> None:
        """Write the remaining entries, and the index.

        Args:
            items: The clips.
            version: Identifies these clips.

        Raises:
            InputError: An item lacks an entry.
        """
        for name in self._abouts:
            self.flush(name)
        self._find_shards()
        keys: dict[str, set[str]] = defaultdict(set)
        fields: dict[str, str] = {}
        for shard in self._shards.values():
            keys[shard.about.array].update(shard.keys)
            fields[shard.about.array] = shard.about.key
        for name, found in sorted(keys.items()):
            lacking = {getattr(item, fields[name]) for item in items} - found
            if lacking:
                raise InputError(f"{len(lacking)} entries of {name} were never added, such as {min(lacking)!r}")
        write_index(make_index(self._origin, version, items, tuple(self._shards.values())), self._storage)

    def count_unused(self, needed: Mapping[str, Collection[str]]) -> int:
        """How many entries `prune` would remove."""
        return sum(len(shard.keys) - len(kept) for shard, kept in self._find_kept(needed))

    def prune(self, needed: Mapping[str, Collection[str]]) -> None:
        """Remove entries that are not needed or are duplicates, and leftovers of killed writers.

        Args:
            needed: Keys by the name of the array; other arrays are not changed.
        """
        left, unneeded = [], []
        for shard, kept in self._find_kept(needed):
            if len(kept) == len(shard.keys):
                left.append(shard)
                continue
            unneeded.append(shard.name)
            if kept:
                values = read_values(self._storage, shard)
                entries = {shard.keys[place]: values[place] for place in kept}
                hashes = [shard.hashes[place] for place in kept]
                name = self._name_shard(shard.about.array)
                left.append(write_shard(self._storage, name, shard.about, entries, hashes))
        if has_index(self._storage):
            # Before anything that the index names is removed.
            write_index(replace(read_index(self._storage), shards=sort_shards(left)), self._storage)
        for name in unneeded:
            self._storage.remove(name)
        self._storage.remove_parts()
        self._shards = {shard.name: shard for shard in left}

    def _find_kept(self, needed: Mapping[str, Collection[str]]) -> list[tuple[Shard, tuple[int, ...]]]:
        """For each shard, the indices of needed entries that no earlier shard has."""
        left = {name: set(keys) for name, keys in needed.items()}
        result = []
        for shard in self._shards.values():
            wanted = left.get(shard.about.array)
            kept = tuple(place for place, key in enumerate(shard.keys) if wanted is None or key in wanted)
            if wanted is not None:
                wanted -= set(shard.keys)
            result.append((shard, kept))
        return result

    def _find_shards(self) -> None:
        """Read the headers of new shards, which other writers may have added."""
        found = list_shards(self._storage, self._shards)
        abouts: dict[str, ArrayAbout] = {}
        for shard in found.values():
            self._check_same("clips", shard.about.origin, self._origin)
            if abouts.setdefault(shard.about.array, shard.about) != shard.about:
                raise InputError(
                    f"{self._storage}/{shard.name} was made differently from other shards of "
                    f"{shard.about.array}; remove it"
                )
        self._shards = found

    def _check_same(self, what: str, present: str | None, expected: str | None) -> None:
        if present != expected:
            raise RecipeError(
                f"{self._storage} was made with {what} {present}, but {expected} is expected; choose another folder"
            )

    def _count_per_shard(self, shape: tuple[int, ...]) -> int:
        return max(1, self._shard_bytes // (DTYPES[self._dtype].itemsize * math.prod(shape)))

    def _name_shard(self, name: str) -> str:
        self._num_written += 1
        return f"{name}-{self._writer}-{self._num_written:05d}{SUFFIX}"

    def _write_shard(self, name: str, shape: tuple[int, ...]) -> None:
        pending = self._pending[name, shape]
        entries = {key: pending.pop(key) for key in list(pending)[: self._count_per_shard(shape)]}
        shard = write_shard(self._storage, self._name_shard(name), self._abouts[name], entries)
        self._shards[shard.name] = shard
        self._flushed[name] = time.monotonic()


def remove_damaged(folder: Path | str) -> tuple[str, ...]:
    """Read all shards of a folder, and remove those that are damaged; return their names."""
    storage = Storage(folder)
    damaged = find_damaged(storage)
    for name in damaged:
        storage.remove(name)
    return tuple(damaged)
