"""Named arrays that were encoded once, in a folder of safetensors shards.

An array has a name ("clean", "first_frame", "text"), one entry per key, one shape and one precision. One field of a
clip's `ClipItem` is the key of its entry: clips that agree in the field share the entry. `index.json` holds the items
and, for each array, its keys, its shards and what it was made by.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sememe.errors import InputError, RecipeError
from sememe.files import atomic_path, write_text

INDEX_NAME = "index.json"
_FORMAT, _TENSOR = 2, "values"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_MAX_SHARD = 512 * 1024 * 1024

CacheDtype = Literal["float16", "bfloat16"]


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
    """An array as the index describes it; `shards` are file names with the number of entries in each."""

    key: str
    made_by: Mapping[str, str]
    dtype: str
    shape: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()
    shards: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Index:
    source: str
    arrays: Mapping[str, ArrayRecord] = field(default_factory=dict)
    items: tuple[ClipItem, ...] = ()


class ArrayCacheWriter:
    """Writes a cache, or goes on with one: entries whose keys `begin` returns are safe on the disk.

    Args:
        folder: Folder of the cache.
        source: What tells the clips from all others, such as a dataset's hash.
        dtype: Precision in which values are kept.
        shard_bytes: Size of one file, below 512 MiB.

    Raises:
        RecipeError: The folder holds arrays of other clips, or a shard would be too large.
    """

    def __init__(
        self,
        folder: Path | str,
        source: str,
        *,
        dtype: CacheDtype = "float16",
        shard_bytes: int = 128 * 1024 * 1024,
    ) -> None:
        if not 0 < shard_bytes < _MAX_SHARD:
            raise RecipeError(f"shard_bytes must be above 0 and below {_MAX_SHARD}, got {shard_bytes}")
        self._folder, self._shard_bytes, self._dtype = Path(folder), shard_bytes, dtype
        self._folder.mkdir(parents=True, exist_ok=True)
        self._index = _read_index(self._folder) if (self._folder / INDEX_NAME).exists() else _Index(source=source)
        _check_same(self._folder, "dataset", self._index.source, source)
        self._pending: dict[str, list[tuple[str, Tensor]]] = {}

    def begin(self, encoder: ArrayEncoder) -> frozenset[str]:
        """Begin an array, or go on with it; return the keys that it has.

        Raises `RecipeError` if the folder holds an array of that name that was made by something else.
        """
        wanted = ArrayRecord(key=encoder.key, made_by=dict(encoder.made_by), dtype=self._dtype)
        record = self._index.arrays.get(encoder.name, wanted)
        for name in sorted(record.made_by.keys() | wanted.made_by.keys()):
            _check_same(self._folder, name, record.made_by.get(name), wanted.made_by.get(name))
        _check_same(self._folder, f"{encoder.name} in", record.dtype, wanted.dtype)
        self._put(encoder.name, record)
        return frozenset(record.keys)

    def append(self, name: str, keys: Sequence[str], values: Tensor) -> None:
        """Add entries, (key, ...), to an array that was begun. Raises `InputError` for another shape, or no number."""
        record, shape = self._index.arrays[name], tuple(values.shape[1:])
        if len(keys) != len(values):
            raise InputError(f"expected {len(keys)} entries of {name}, got {len(values)}")
        if record.shape not in ((), shape):
            raise InputError(f"all entries of {name} have one shape, here {record.shape}, got {shape}")
        stored = values.detach().to("cpu", _DTYPES[record.dtype]).contiguous()
        if not torch.isfinite(stored).all():
            raise InputError(f"{name} must be finite in {record.dtype}; normalise it, or use bfloat16")
        self._put(name, dataclasses.replace(record, shape=shape))
        pending = self._pending.setdefault(name, [])
        pending += zip(keys, stored.unbind(), strict=True)
        while len(pending) >= self._count_per_shard(name):
            self._write_shard(name)

    def flush(self, name: str) -> None:
        """Write what is left of an array."""
        while self._pending.get(name):
            self._write_shard(name)

    def finish(self, items: Sequence[ClipItem]) -> None:
        """Write what is left, and the items. Raises `InputError` if an item lacks an entry."""
        for name in self._pending:
            self.flush(name)
        for name, record in self._index.arrays.items():
            lacking = {getattr(item, record.key) for item in items} - set(record.keys)
            if lacking:
                raise InputError(f"{len(lacking)} entries of {name} were never added, such as {min(lacking)!r}")
        self._index = dataclasses.replace(self._index, items=tuple(items))
        _write_index(self._index, self._folder)

    def _put(self, name: str, record: ArrayRecord) -> None:
        self._index = dataclasses.replace(self._index, arrays={**self._index.arrays, name: record})

    def _count_per_shard(self, name: str) -> int:
        return max(1, self._shard_bytes // (2 * int(np.prod(self._index.arrays[name].shape))))

    def _write_shard(self, name: str) -> None:
        count, record = self._count_per_shard(name), self._index.arrays[name]
        keys, values = zip(*self._pending[name][:count], strict=True)
        file = f"{name}_{len(record.shards):05d}.safetensors"
        with atomic_path(self._folder / file) as part:
            save_file({_TENSOR: torch.stack(values)}, part)
        shards = (*record.shards, (file, len(keys)))
        # The index comes last: a shard that it does not name is written over.
        self._put(name, dataclasses.replace(record, keys=record.keys + keys, shards=shards))
        _write_index(self._index, self._folder)
        del self._pending[name][:count]


class ArrayCache:
    """A cache read into memory.

    `items` describes the clips, `arrays` the arrays by name. `conditions`, `scenes`, `captions`, `full_captions` and
    `splits` hold one text per item.
    """

    def __init__(self, index: _Index, values: Mapping[str, Tensor], places: Sequence[int] | None = None) -> None:
        self._index, self._values = index, dict(values)
        self.source, self.arrays = index.source, index.arrays
        self._places = tuple(range(len(index.items))) if places is None else tuple(places)
        self.items = tuple(index.items[place] for place in self._places)
        self.conditions = tuple(item.condition for item in self.items)
        self.scenes = tuple(item.scene for item in self.items)
        self.captions = tuple(item.caption for item in self.items)
        self.full_captions = tuple(item.full_caption for item in self.items)
        self.splits = tuple(item.split for item in self.items)
        self._entries = {
            name: {key: place for place, key in enumerate(record.keys)} for name, record in index.arrays.items()
        }
        self._of_items = {
            name: self.places(name, [getattr(item, record.key) for item in self.items])
            for name, record in index.arrays.items()
        }

    @classmethod
    def open(cls, folder: Path | str, device: torch.device | str = "cpu") -> "ArrayCache":
        """Read a cache, once, to the device that trains, so that batches cost no transfer.

        Raises `InputError` if there is none, or it is damaged or not finished.
        """
        folder = Path(folder)
        index = _read_index(folder)
        if not index.items:
            raise InputError(f"the cache {folder} is not finished; go on with `sememe precompute`")
        arrays = index.arrays.items()
        return cls(index, {name: _read_array(folder, name, record).to(device) for name, record in arrays})

    def __len__(self) -> int:
        return len(self.items)

    def describe(self, name: str) -> dict[str, str]:
        """What identifies an array, as inputs of a run: its clips, and what it was made by."""
        if name not in self.arrays:
            raise InputError(f"the cache holds {', '.join(self.arrays)}, but no {name}; precompute it")
        return {"clips": self.source, **self.arrays[name].made_by}

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
        return ArrayCache(self._index, self._values, [self._places[place] for place in places])


def _check_same(folder: Path, what: str, present: str | None, expected: str | None) -> None:
    if present != expected:
        raise RecipeError(f"{folder} was made with {what} {present}, but {expected} is expected; choose another folder")


def _write_index(index: _Index, folder: Path) -> None:
    write_text(folder / INDEX_NAME, json.dumps({"format": _FORMAT, **dataclasses.asdict(index)}) + "\n")


def _read_index(folder: Path) -> _Index:
    advice = "precompute it into another folder"
    try:
        values = json.loads((folder / INDEX_NAME).read_text())
        if values["format"] != _FORMAT:
            raise ValueError(f"it is of format {values['format']}, not {_FORMAT}")
        return _Index(
            source=values["source"],
            arrays={name: _parse_array(record) for name, record in values["arrays"].items()},
            items=tuple(ClipItem(**item) for item in values["items"]),
        )
    except FileNotFoundError:
        raise InputError(f"{folder} holds no cache; make one with `sememe precompute`") from None
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{folder / INDEX_NAME} cannot be read: {error}; {advice}") from error


def _parse_array(values: Mapping[str, Any]) -> ArrayRecord:
    shards = tuple((Path(name).name, int(count)) for name, count in values["shards"])
    return ArrayRecord(**{**values, "shape": tuple(values["shape"]), "keys": tuple(values["keys"]), "shards": shards})


def _read_array(folder: Path, name: str, record: ArrayRecord) -> Tensor:
    result = torch.empty((len(record.keys), *record.shape), dtype=_DTYPES[record.dtype])
    start = 0
    for file, count in record.shards:
        try:
            with safe_open(folder / file, framework="pt") as shard:
                tensor = shard.get_tensor(_TENSOR)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(f"{folder / file} is missing or damaged: {error}; precompute it again") from error
        expected = (count, *record.shape)
        if tuple(tensor.shape) != expected or tensor.dtype != result.dtype or start + count > len(result):
            raise InputError(
                f"{folder / file} should hold {record.dtype} values of shape {expected}, "
                f"but holds {tensor.dtype} of {tuple(tensor.shape)}; precompute it again"
            )
        result[start : start + count] = tensor
        start += count
    if start != len(result):
        raise InputError(f"{folder} should hold {len(result)} entries of {name}, but its shards hold {start}")
    return result
