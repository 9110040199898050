"""Named arrays that are encoded once, in a folder of shards.

An array has a name ("clean", "first_frame", "text"), one entry per key, and one precision; its entries have one shape,
or one for each bucket of clips. One field of a clip's `ClipItem` is the key of its entry: clips with equal values share
the entry. Each shard describes its own content (see `data.array_shards`); the index holds the items and the names of
the shards, and is written last.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Int
from torch import Tensor

from sememe.data.array_shards import DTYPES, Entries, EntryPlace, Shard, read_entries, read_values
from sememe.data.cache_index import CacheIndex, ClipItem, read_index
from sememe.data.storage import Storage
from sememe.errors import InputError

logger = logging.getLogger(__name__)

# Hashing takes most of the time of reading, and lets other threads run. Each holds two copies of a shard.
_NUM_READERS = 4

Places = Int[Tensor, " place"]


@dataclass(frozen=True, kw_only=True)
class ArrayRecord:
    """Description of an array, from its shards.

    Attributes:
        key: The field of `ClipItem` that names an entry.
        made_by: What the values depend on besides the clips.
        dtype: Precision of the values.
        shapes: Shapes of entries, each once.
        keys: Keys of the entries, in the order of the values.
    """

    key: str
    made_by: Mapping[str, str]
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    keys: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of every entry. Raises `InputError` where there are several."""
        if len(self.shapes) != 1:
            raise InputError(
                f"expected clips of one size and length, got arrays of {self.shapes}; precompute them without "
                "clips.buckets, which only Video-As-Prompt's backbones and experts are trained on"
            )
        return self.shapes[0]


class HeldValues:
    """Values in memory, in one tensor for each shape."""

    def __init__(self, storage: Storage, shards: Sequence[Shard], device: torch.device | str) -> None:
        groups = [list(group) for _, group in groupby(shards, key=lambda shard: shard.shape)]
        self._groups = [_read_group(storage, group).to(device) for group in groups]
        self._starts = _find_starts([len(group) for group in self._groups])

    def read(self, places: Places) -> Entries:
        if len(self._groups) == 1:
            # Without synchronising with a GPU, where the indices may be.
            return self._groups[0].index_select(0, places.to(self._groups[0].device))
        places = places.cpu()
        owners = torch.searchsorted(self._starts, places, right=True) - 1
        assert len(owners.unique()) == 1, f"entries of several shapes: {places}"
        owner = int(owners[0])
        values = self._groups[owner]
        return values.index_select(0, (places - self._starts[owner]).to(values.device))


class StoredValues:
    """Values in files, read on access."""

    def __init__(self, storage: Storage, shards: Sequence[Shard]) -> None:
        self._storage, self._shards = storage, tuple(shards)
        self._starts = _find_starts([len(shard.keys) for shard in shards])

    def read(self, places: Places) -> Entries:
        places = places.cpu()
        owners = (torch.searchsorted(self._starts, places, right=True) - 1).tolist()
        numbers = (places - self._starts[owners]).tolist()
        entries = [EntryPlace(self._shards[owner], number) for owner, number in zip(owners, numbers, strict=True)]
        assert len({entry.shard.shape for entry in entries}) == 1, f"entries of several shapes: {places}"
        return read_entries(self._storage, entries)


ArrayValues = HeldValues | StoredValues
"""The values of one array: `read` returns the entries at indices, which must have one shape."""


class ArrayCache:
    """A finished cache.

    `arrays` describes its arrays by name. `origin` identifies the kind of clips that keys refer to, and `version` all
    clips together. `conditions`, `scenes`, `captions`, `full_captions`, `splits` and `buckets` hold one text
    per item.

    Raises `InputError` for an item without an entry.
    """

    def __init__(
        self,
        index: CacheIndex,
        arrays: Mapping[str, ArrayRecord],
        values: Mapping[str, ArrayValues],
        entries: Mapping[str, Int[Tensor, " item"]],
        picked: Int[Tensor, " picked"],
    ) -> None:
        self._index, self._values, self._entries, self._picked = index, values, entries, picked
        self._is_whole = torch.equal(picked, torch.arange(index.num_items))
        self._numbers: dict[str, dict[str, int]] = {}
        self.origin, self.version, self.arrays = index.origin, index.version, dict(arrays)
        self.conditions = self._column("condition")
        self.scenes = self._column("scene")
        self.captions = self._column("caption")
        self.full_captions = self._column("full_caption")
        self.splits = self._column("split")
        self.buckets = self._column("bucket")

    @classmethod
    def open(
        cls, folder: Path | str, device: torch.device | str = "cpu", *, memory_bytes: int | None = None
    ) -> "ArrayCache":
        """Open a cache. Arrays that fit are read once to the training device, so that batches need no transfer.

        The others stay in their files, from which a batch reads the entries that it needs.

        Args:
            folder: Folder of the cache, or its URL (see `data.storage`).
            device: Device of the arrays that fit.
            memory_bytes: Most bytes of all arrays together; None for half of the free memory, divided by the processes
                that torchrun started on this machine.

        Raises:
            InputError: There is no cache, or it is damaged or not finished.
        """
        storage = Storage(folder)
        index = read_index(storage)
        left = _find_free(device) if memory_bytes is None else memory_bytes
        shards = {name: tuple(group) for name, group in groupby(index.shards, key=lambda shard: shard.about.array)}
        values: dict[str, ArrayValues] = {}
        for name in sorted(shards, key=lambda name: _measure(shards[name])):
            size = _measure(shards[name])
            if size <= left:
                values[name] = HeldValues(storage, shards[name], device)
                left -= size
            else:
                logger.info("%s of %s (%.1f GB) is read from its files, entry by entry", name, storage, size / 1e9)
                values[name] = StoredValues(storage, shards[name])
        arrays = {name: _describe(group) for name, group in shards.items()}
        entries = {
            name: _find_places(name, _number(record.keys), index.columns[record.key]) for name, record in arrays.items()
        }
        return cls(index, arrays, values, entries, torch.arange(index.num_items))

    def __len__(self) -> int:
        return len(self._picked)

    def item(self, index: int) -> ClipItem:
        """Description of an item."""
        return self._index.item(int(self._picked[index]))

    @property
    def items(self) -> tuple[ClipItem, ...]:
        """Descriptions of all items."""
        return tuple(self.item(index) for index in range(len(self)))

    @cached_property
    def references(self) -> tuple[tuple[int, ...], ...]:
        """For each item, the indices of the references that the data lists for it.

        References that are not in the cache, or of another condition, are left out; none left means that any may be
        used.
        """
        listed = self._column("references")
        if not any(listed):
            return ((),) * len(self)
        fellows = zip(self._column("clip"), self.conditions, strict=True)
        numbers = {fellow: number for number, fellow in enumerate(fellows)}
        return tuple(
            tuple(
                numbers[key, condition]
                for key in keys
                if (key, condition) in numbers and numbers[key, condition] != number
            )
            for number, (keys, condition) in enumerate(zip(listed, self.conditions, strict=True))
        )

    def describe(self, name: str) -> dict[str, str]:
        """Identity of an array as an input of a run: its clips, and how it was made."""
        if name not in self.arrays:
            raise InputError(f"the cache holds {', '.join(self.arrays)}, but no {name}; precompute it")
        return {"clips": self.version, **self.arrays[name].made_by}

    def select(self, name: str, indices: np.ndarray | Tensor | Sequence[int]) -> Entries:
        """An array's entries of items of one bucket."""
        return self.read(name, self._entries[name][self._picked[torch.as_tensor(indices)]])

    def places(self, name: str, keys: Sequence[str]) -> Places:
        """Indices of the entries of keys in an array. Raises `InputError` for a key without an entry."""
        if name not in self._numbers:
            self._numbers[name] = _number(self.arrays[name].keys)
        return _find_places(name, self._numbers[name], keys)

    def read(self, name: str, places: Places) -> Entries:
        """An array's entries at indices, which must have one shape."""
        return self._values[name].read(places)

    def only(self, places: Sequence[int]) -> "ArrayCache":
        """A cache of some of the items, numbered from 0, without copying arrays. Raises `InputError` for none."""
        if not len(places):
            raise InputError("the cache has none of the requested clips; precompute them")
        picked = self._picked[torch.as_tensor(places)]
        return ArrayCache(self._index, self.arrays, self._values, self._entries, picked)

    def _column(self, name: str) -> tuple[Any, ...]:
        column = self._index.columns[name]
        return column if self._is_whole else tuple(map(column.__getitem__, self._picked.tolist()))


def _describe(shards: Sequence[Shard]) -> ArrayRecord:
    about = shards[0].about
    return ArrayRecord(
        key=about.key,
        made_by=about.made_by,
        dtype=about.dtype,
        shapes=tuple(dict.fromkeys(shard.shape for shard in shards)),
        keys=tuple(key for shard in shards for key in shard.keys),
    )


def _number(keys: Sequence[str]) -> dict[str, int]:
    """The first place of each key."""
    return dict(zip(reversed(keys), reversed(range(len(keys))), strict=True))


def _find_places(name: str, numbers: Mapping[str, int], keys: Sequence[str]) -> Tensor:
    try:
        return torch.tensor(list(map(numbers.__getitem__, keys)), dtype=torch.int64)
    except KeyError as error:
        raise InputError(f"the cache has no {name} for {error}; precompute it") from None


def _find_starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)][:-1])


def _read_group(storage: Storage, shards: Sequence[Shard]) -> Tensor:
    count = sum(len(shard.keys) for shard in shards)
    result = torch.empty((count, *shards[0].shape), dtype=DTYPES[shards[0].about.dtype])

    def read(start: int, shard: Shard) -> None:
        result[start : start + len(shard.keys)] = read_values(storage, shard)

    starts = [0, *accumulate(len(shard.keys) for shard in shards)][:-1]
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        list(pool.map(read, starts, shards))  # a list, so that errors are raised
    return result


def _measure(shards: Sequence[Shard]) -> int:
    return sum(len(shard.keys) * shard.entry_bytes for shard in shards)


def _find_free(device: torch.device | str) -> int:
    """Half of the free bytes, for this process: of its GPU, or of its share of the machine's memory."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return int(psutil.virtual_memory().available) // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
