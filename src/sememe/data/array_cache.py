"""Named arrays that were encoded once, in a folder of shards.

An array has a name ("clean", "first_frame", "text"), one entry per key, one shape and one precision. One field of a
clip's `ClipItem` is the key of its entry: clips that agree in the field share the entry. Shards say themselves what
they hold (see `data.array_shards`); `index.json` holds the items, and is written last.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sememe.data.array_shards import (
    DTYPES,
    Shard,
    ShardHeader,
    find_damaged,
    list_shards,
    read_header,
    read_values,
    write_shard,
)
from sememe.errors import InputError, RecipeError
from sememe.files import write_text

INDEX_NAME = "index.json"
_FORMAT = 3
_MAX_SHARD = 512 * 1024 * 1024

CacheDtype = Literal["float16", "bfloat16", "uint8"]


@dataclass(frozen=True, kw_only=True)
class ClipItem:
    """What is known of a cached clip.

    `clip` and `first_frame` name its frames and its first frame; clips with the same first frame share one
    `first_frame`. An expert is trained on clips of `split` "train", and a backbone meets the conditions of others
    without their names.
    """

    clip: str
    condition: str
    scene: str
    first_frame: str
    caption: str = ""
    full_caption: str = ""
    split: str = "train"


@runtime_checkable
class ArrayEncoder(Protocol):
    """Makes one named array.

    Attributes:
        name: Name of the array.
        key: The field of `ClipItem` that names a clip's entry.
        made_by: What decides on the values besides the clips: fingerprints of weights, settings.
    """

    name: str
    key: str
    made_by: Mapping[str, str]

    def list_entries(self, items: Sequence[ClipItem]) -> Mapping[str, Any]:
        """What `preprocess` takes, by key, in order."""
        ...

    def preprocess(self, entries: Sequence[Any]) -> Tensor:
        """A batch of inputs of the encoder."""
        ...

    def encode(self, inputs: Tensor) -> Tensor:
        """The values of a batch, (entry, ...)."""
        ...


@dataclass(frozen=True, kw_only=True)
class ArrayRecord:
    """An array as its shards describe it; `keys` are in the order of the values."""

    key: str
    made_by: Mapping[str, str]
    dtype: str
    shape: tuple[int, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Index:
    origin: str
    version: str
    items: tuple[ClipItem, ...]


class ArrayCacheWriter:
    """Writes a cache, or goes on with one: entries whose keys `begin` returns are safe on the disk.

    Several writers may work in one folder; what two of them encode is there twice and read once.

    Args:
        folder: Folder of the cache.
        origin: What tells the clips of a key from all others, such as how videos are read.
        dtype: Precision in which values are kept; uint8 for whole numbers from 0 to 255.
        shard_bytes: Size of one file, below 512 MiB.
        flush_seconds: A file is written at the latest so long after the last one of its array.

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
        self._folder, self._origin, self._dtype = Path(folder), origin, dtype
        self._shard_bytes, self._flush_seconds = shard_bytes, flush_seconds
        self._folder.mkdir(parents=True, exist_ok=True)
        if (self._folder / INDEX_NAME).exists():
            _check_same(self._folder, "clips", _read_index(self._folder).origin, origin)
        self._shards = _read_shards(self._folder)
        for shard in self._shards:
            _check_same(self._folder, "clips", shard.header.origin, origin)
        self._headers: dict[str, ShardHeader] = {}
        self._pending: dict[str, list[tuple[str, Tensor]]] = {}
        self._flushed: dict[str, float] = {}
        self._writer, self._num_written = secrets.token_hex(4), 0

    def begin(self, encoder: ArrayEncoder) -> frozenset[str]:
        """Begin an array, or go on with it; return the keys that it has.

        Raises `RecipeError` if the folder holds an array of that name that was made by something else.
        """
        made_by = dict(encoder.made_by)
        present = [shard.header for shard in self._shards if shard.header.array == encoder.name]
        for header in present:
            for name in sorted(header.made_by.keys() | made_by.keys()):
                _check_same(self._folder, name, header.made_by.get(name), made_by.get(name))
            _check_same(self._folder, f"{encoder.name} in", header.dtype, self._dtype)
        self._headers[encoder.name] = ShardHeader(
            origin=self._origin,
            array=encoder.name,
            key=encoder.key,
            made_by=made_by,
            dtype=self._dtype,
            shape=present[0].shape if present else (),
            keys=(),
        )
        self._flushed[encoder.name] = time.monotonic()
        return frozenset(key for header in present for key in header.keys)

    def append(self, name: str, keys: Sequence[str], values: Tensor) -> None:
        """Add entries, (key, ...), to an array that was begun. Raises `InputError` for another shape, or no number."""
        header, shape = self._headers[name], tuple(values.shape[1:])
        if len(keys) != len(values):
            raise InputError(f"expected {len(keys)} entries of {name}, got {len(values)}")
        if header.shape not in ((), shape):
            raise InputError(f"all entries of {name} have one shape, here {header.shape}, got {shape}")
        stored = values.detach().to("cpu", DTYPES[header.dtype]).contiguous()
        if not torch.isfinite(stored).all():
            raise InputError(f"{name} must be finite in {header.dtype}; normalise it, or use bfloat16")
        self._headers[name] = replace(header, shape=shape)
        pending = self._pending.setdefault(name, [])
        pending += zip(keys, stored.unbind(), strict=True)
        while len(pending) >= self._count_per_shard(name):
            self._write_shard(name)
        if time.monotonic() - self._flushed[name] >= self._flush_seconds:
            self.flush(name)

    def flush(self, name: str) -> None:
        """Write what is left of an array."""
        while self._pending.get(name):
            self._write_shard(name)

    def finish(self, items: Sequence[ClipItem], version: str) -> None:
        """Write what is left, and the items.

        Args:
            items: The clips.
            version: What tells these clips from all others.

        Raises:
            InputError: An item lacks an entry.
        """
        for name in self._pending:
            self.flush(name)
        # Other writers may have added shards, too.
        self._shards = _read_shards(self._folder)
        for name, record in _list_arrays(self._shards).items():
            lacking = {getattr(item, record.key) for item in items} - set(record.keys)
            if lacking:
                raise InputError(f"{len(lacking)} entries of {name} were never added, such as {min(lacking)!r}")
        _write_index(_Index(origin=self._origin, version=version, items=tuple(items)), self._folder)

    def count_unused(self, needed: Mapping[str, Collection[str]]) -> int:
        """How many entries `prune` would remove."""
        return sum(len(shard.header.keys) - len(kept) for shard, kept in _find_kept(self._shards, needed))

    def prune(self, needed: Mapping[str, Collection[str]]) -> None:
        """Remove entries that are not needed or are there twice, and what writers that were killed left behind.

        Args:
            needed: Keys by the name of the array; arrays that are not named stay as they are.
        """
        for shard, kept in _find_kept(self._shards, needed):
            if len(kept) == len(shard.header.keys):
                continue
            if kept:
                header = replace(shard.header, keys=tuple(shard.header.keys[place] for place in kept))
                write_shard(self._name_shard(header.array), header, read_values(shard)[list(kept)])
            shard.path.unlink()
        for path in self._folder.glob(".*.part.*"):
            path.unlink()
        self._shards = _read_shards(self._folder)

    def _count_per_shard(self, name: str) -> int:
        size = DTYPES[self._dtype].itemsize * int(np.prod(self._headers[name].shape))
        return max(1, self._shard_bytes // size)

    def _name_shard(self, name: str) -> Path:
        self._num_written += 1
        return self._folder / f"{name}-{self._writer}-{self._num_written:05d}.safetensors"

    def _write_shard(self, name: str) -> None:
        count = self._count_per_shard(name)
        keys, values = zip(*self._pending[name][:count], strict=True)
        header = replace(self._headers[name], keys=keys)
        self._shards.append(write_shard(self._name_shard(name), header, torch.stack(values)))
        self._flushed[name] = time.monotonic()
        del self._pending[name][:count]


def remove_damaged(folder: Path) -> tuple[str, ...]:
    """Read all shards of a folder, and remove those that are damaged; return their names."""
    damaged = find_damaged(list_shards(folder))
    for path in damaged:
        path.unlink()
    return tuple(path.name for path in damaged)


class ArrayCache:
    """A cache read into memory.

    `items` describes the clips, `arrays` the arrays by name. `origin` tells the clips of a key from those of other
    caches, and `version` all clips from all others. `conditions`, `scenes`, `captions`, `full_captions` and `splits`
    hold one text per item.

    Raises `InputError` for an item whose entry is not there.
    """

    def __init__(
        self,
        index: _Index,
        arrays: Mapping[str, ArrayRecord],
        values: Mapping[str, Tensor],
        places: Sequence[int] | None = None,
    ) -> None:
        self._index, self._values = index, dict(values)
        self.origin, self.version, self.arrays = index.origin, index.version, dict(arrays)
        self._places = tuple(range(len(index.items))) if places is None else tuple(places)
        self.items = tuple(index.items[place] for place in self._places)
        self.conditions = tuple(item.condition for item in self.items)
        self.scenes = tuple(item.scene for item in self.items)
        self.captions = tuple(item.caption for item in self.items)
        self.full_captions = tuple(item.full_caption for item in self.items)
        self.splits = tuple(item.split for item in self.items)
        self._entries = {name: _find_places(record.keys) for name, record in self.arrays.items()}
        self._of_items = {
            name: self.places(name, [getattr(item, record.key) for item in self.items])
            for name, record in self.arrays.items()
        }

    @classmethod
    def open(cls, folder: Path | str, device: torch.device | str = "cpu") -> "ArrayCache":
        """Read a cache, once, to the device that trains, so that batches cost no transfer.

        Raises `InputError` if there is none, or it is damaged or not finished.
        """
        folder = Path(folder)
        paths = list_shards(folder)
        if paths and not (folder / INDEX_NAME).exists():
            raise InputError(f"the cache {folder} is not finished; go on with `sememe precompute`")
        index, shards = _read_index(folder), [read_header(path) for path in paths]
        arrays = _list_arrays(shards)
        values = {name: _read_array([each for each in shards if each.header.array == name]) for name in arrays}
        return cls(index, arrays, {name: tensor.to(device) for name, tensor in values.items()})

    def __len__(self) -> int:
        return len(self.items)

    def describe(self, name: str) -> dict[str, str]:
        """What identifies an array, as inputs of a run: its clips, and what it was made by."""
        if name not in self.arrays:
            raise InputError(f"the cache holds {', '.join(self.arrays)}, but no {name}; precompute it")
        return {"clips": self.version, **self.arrays[name].made_by}

    def select(self, name: str, indices: np.ndarray | Tensor | Sequence[int]) -> Tensor:
        """An array's entries of items, (index, ...)."""
        return self.read(name, self._of_items[name][torch.as_tensor(indices)])

    def places(self, name: str, keys: Sequence[str]) -> Tensor:
        """Where in an array the entries of keys are, (key,). Raises `InputError` for a key that has none."""
        entries = self._entries[name]
        lacking = sorted(set(keys) - entries.keys())
        if lacking:
            raise InputError(f"the cache has no {name} for {lacking[0]!r}; precompute it")
        return torch.tensor([entries[key] for key in keys], dtype=torch.int64)

    def read(self, name: str, places: Tensor) -> Tensor:
        """An array's entries at places, (place, ...)."""
        values = self._values[name]
        return values.index_select(0, places.to(values.device))

    def only(self, places: Sequence[int]) -> "ArrayCache":
        """Some of the items, numbered from 0; the arrays are not copied. Raises `InputError` for none."""
        if not len(places):
            raise InputError("no clip of the cache is of those that were asked for; precompute others")
        return ArrayCache(self._index, self.arrays, self._values, [self._places[place] for place in places])


def _check_same(folder: Path, what: str, present: str | None, expected: str | None) -> None:
    if present != expected:
        raise RecipeError(f"{folder} was made with {what} {present}, but {expected} is expected; choose another folder")


def _read_shards(folder: Path) -> list[Shard]:
    return [read_header(path) for path in list_shards(folder)]


def _list_arrays(shards: Sequence[Shard]) -> dict[str, ArrayRecord]:
    """The arrays of some shards, in the order of their names. Raises `InputError` where two shards do not agree."""
    arrays: dict[str, ArrayRecord] = {}
    for name in sorted({shard.header.array for shard in shards}):
        headers = [shard.header for shard in shards if shard.header.array == name]
        for shard in shards:
            if shard.header.array == name and replace(shard.header, keys=()) != replace(headers[0], keys=()):
                raise InputError(f"{shard.path} was made by something else than other shards of {name}; remove it")
        arrays[name] = ArrayRecord(
            key=headers[0].key,
            made_by=headers[0].made_by,
            dtype=headers[0].dtype,
            shape=headers[0].shape,
            keys=tuple(key for header in headers for key in header.keys),
        )
    return arrays


def _find_places(keys: Sequence[str]) -> dict[str, int]:
    """The first place of each key."""
    places: dict[str, int] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, place)
    return places


def _find_kept(shards: Sequence[Shard], needed: Mapping[str, Collection[str]]) -> list[tuple[Shard, tuple[int, ...]]]:
    """For each shard, the places of the entries that are needed and that no shard before it has."""
    left = {name: set(keys) for name, keys in needed.items()}
    result = []
    for shard in shards:
        keys, wanted = shard.header.keys, left.get(shard.header.array)
        kept = tuple(place for place, key in enumerate(keys) if wanted is None or key in wanted)
        if wanted is not None:
            wanted -= set(keys)
        result.append((shard, kept))
    return result


def _read_array(shards: Sequence[Shard]) -> Tensor:
    header, count = shards[0].header, sum(len(shard.header.keys) for shard in shards)
    result = torch.empty((count, *header.shape), dtype=DTYPES[header.dtype])
    start = 0
    for shard in shards:
        end = start + len(shard.header.keys)
        result[start:end] = read_values(shard)
        start = end
    return result


def _write_index(index: _Index, folder: Path) -> None:
    content = asdict(index)
    about = {"format": _FORMAT, "sha256": _hash_content(content), **content}
    write_text(folder / INDEX_NAME, json.dumps(about) + "\n")


def _hash_content(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_index(folder: Path) -> _Index:
    advice = "precompute it into another folder"
    try:
        content = json.loads((folder / INDEX_NAME).read_text())
        found, digest = content.pop("format"), content.pop("sha256", None)
        if found != _FORMAT:
            raise ValueError(f"it is of format {found}, not {_FORMAT}")
        if _hash_content(content) != digest:
            raise ValueError("it holds something else than was written to it")
        items = tuple(ClipItem(**item) for item in content["items"])
        return _Index(origin=content["origin"], version=content["version"], items=items)
    except FileNotFoundError:
        raise InputError(f"{folder} holds no cache; make one with `sememe precompute`") from None
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{folder / INDEX_NAME} cannot be read: {error}; {advice}") from error
