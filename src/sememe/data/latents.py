"""Latents that were encoded once, in a folder of safetensors shards.

`index.json` says what they were made from and by, and describes each item. Two kinds of tensors: *clean* latents, one
for each clip, shape (C, T, H, W); and *condition* latents, one for each first frame (the encoding of that frame
followed by grey or by itself, same shape), which all clips that begin with it share.
"""

import dataclasses
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sememe.errors import InputError, RecipeError
from sememe.files import atomic_path, write_text

_INDEX, _FORMAT, _TENSOR = "index.json", 1, "latents"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_MAX_SHARD = 512 * 1024 * 1024

CacheDtype = Literal["float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class LatentItem:
    """What is known of a cached clip; `first_frame` names the condition latents that it begins with."""

    condition: str
    scene: str
    first_frame: str
    caption: str = ""
    full_caption: str = ""


@dataclass(frozen=True, kw_only=True)
class CacheOrigin:
    """What latents were made from (a dataset's or the world's version) and by (an autoencoder's fingerprint).

    `first_frame_fill` is what follows the picture in condition latents, see `sememe.backbones.first_frame`.
    """

    dataset: str
    autoencoder: str
    first_frame_fill: Literal["grey", "repeat", "zeros"] = "grey"


@dataclass(frozen=True, kw_only=True)
class _Index:
    origin: CacheOrigin
    dtype: str
    shape: tuple[int, ...] = ()
    items: tuple[LatentItem, ...] = ()
    first_frames: tuple[str, ...] = ()
    shards: tuple[tuple[str, int], ...] = ()
    """File names with the number of tensors in each, in the order of writing."""


@dataclass
class _Pending:
    tensors: list[Tensor] = field(default_factory=list)
    records: list[Any] = field(default_factory=list)


class LatentCacheWriter:
    """Writes a cache, or goes on with one: what `num_items` and `num_first_frames` count is safe on the disk.

    A caller that was interrupted leaves out that many and appends the rest, in the same order, and calls `finish`.

    Raises `RecipeError` if the folder holds latents of another origin or precision, or if a shard would be 512 MiB or
    more.
    """

    def __init__(
        self,
        folder: Path | str,
        origin: CacheOrigin,
        *,
        dtype: CacheDtype = "float16",
        shard_bytes: int = 128 * 1024 * 1024,
    ) -> None:
        if not 0 < shard_bytes < _MAX_SHARD:
            raise RecipeError(f"shard_bytes must be above 0 and below {_MAX_SHARD}, got {shard_bytes}")
        self._folder, self._shard_bytes, self._dtype = Path(folder), shard_bytes, _DTYPES[dtype]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._index = _Index(origin=origin, dtype=dtype)
        if (self._folder / _INDEX).exists():
            present = _read_index(self._folder)
            _check_origin(self._folder, present.origin, origin)
            if present.dtype != dtype:
                raise RecipeError(f"{self._folder} holds {present.dtype} latents, not {dtype}; choose another folder")
            self._index = present
        self._clean, self._condition = _Pending(), _Pending()

    @property
    def num_items(self) -> int:
        """Clips whose latents are on the disk."""
        return len(self._index.items)

    @property
    def num_first_frames(self) -> int:
        """First frames whose condition latents are on the disk."""
        return len(self._index.first_frames)

    def append_clips(self, items: Sequence[LatentItem], latents: Tensor) -> None:
        """Add clips and their clean latents, shape (num_items, C, T, H, W)."""
        self._append(self._clean, list(items), latents)
        self._flush_full(self._clean, "clean")

    def append_first_frames(self, names: Sequence[str], latents: Tensor) -> None:
        """Add first frames by name and their condition latents, shape (num_names, C, T, H, W)."""
        self._append(self._condition, list(names), latents)
        self._flush_full(self._condition, "condition")

    def finish(self) -> None:
        """Write what is left. Raises `InputError` if clips name first frames that were not added."""
        while self._condition.tensors:
            self._flush(self._condition, "condition")
        while self._clean.tensors:
            self._flush(self._clean, "clean")
        unknown = {item.first_frame for item in self._index.items} - set(self._index.first_frames)
        if unknown:
            raise InputError(f"{len(unknown)} first frames were never added, such as {min(unknown)!r}; append them too")

    def _append(self, pending: _Pending, records: list[Any], latents: Tensor) -> None:
        shape = tuple(latents.shape[1:])
        if len(records) != len(latents) or len(shape) != 4:
            raise InputError(f"expected latents of shape ({len(records)}, C, T, H, W), got {tuple(latents.shape)}")
        if self._index.shape not in ((), shape):
            raise InputError(f"all latents of a cache have one shape, here {self._index.shape}, got {shape}")
        if not self._index.shape:
            self._index = dataclasses.replace(self._index, shape=shape)
        stored = latents.detach().to("cpu", self._dtype).contiguous()
        if not torch.isfinite(stored).all():
            raise InputError(f"latents must be finite in {self._index.dtype}; normalise them, or use bfloat16")
        pending.tensors += stored.unbind()
        pending.records += records

    def _flush_full(self, pending: _Pending, kind: str) -> None:
        while len(pending.tensors) >= self._tensors_per_shard():
            self._flush(pending, kind)

    def _tensors_per_shard(self) -> int:
        return max(1, self._shard_bytes // (2 * int(np.prod(self._index.shape))))

    def _flush(self, pending: _Pending, kind: str) -> None:
        count = self._tensors_per_shard()
        tensors, records = pending.tensors[:count], tuple(pending.records[:count])
        name = f"{kind}_{sum(each.startswith(kind) for each, _ in self._index.shards):05d}.safetensors"
        with atomic_path(self._folder / name) as part:
            save_file({_TENSOR: torch.stack(tensors)}, part)
        shards = (*self._index.shards, (name, len(tensors)))
        if kind == "clean":
            index = dataclasses.replace(self._index, shards=shards, items=self._index.items + records)
        else:
            index = dataclasses.replace(self._index, shards=shards, first_frames=self._index.first_frames + records)
        # The index comes last: a shard that it does not name is written anew.
        _write_index(index, self._folder)
        self._index = index
        del pending.tensors[:count], pending.records[:count]


class LatentCache:
    """A cache read into memory.

    `items` describes the clips; `clean` has shape (num_items, C, T, H, W), `condition` (num_first_frames, C, T, H, W),
    both in the precision of the files. `conditions`, `scenes`, `captions` and `full_captions` hold one entry an item.
    """

    def __init__(
        self,
        origin: CacheOrigin,
        items: Sequence[LatentItem],
        first_frames: Sequence[str],
        clean: Tensor,
        condition: Tensor,
    ) -> None:
        self.origin, self.items = origin, tuple(items)
        self.clean, self.condition = clean, condition
        places = {name: index for index, name in enumerate(first_frames)}
        missing = {item.first_frame for item in items} - places.keys()
        if missing:
            raise InputError(f"the cache is not finished: it lacks first frame {min(missing)!r}; go on with writing it")
        self.conditions = tuple(item.condition for item in items)
        self.scenes = tuple(item.scene for item in items)
        self.captions = tuple(item.caption for item in items)
        self.full_captions = tuple(item.full_caption for item in items)
        self._first_frame_of = torch.tensor([places[item.first_frame] for item in items], device=clean.device)

    @classmethod
    def open(cls, folder: Path | str, expected: CacheOrigin | None = None) -> "LatentCache":
        """Read a cache. With `expected`, `RecipeError` if it is of another origin; `InputError` if it is damaged."""
        folder = Path(folder)
        index = _read_index(folder)
        if expected is not None:
            _check_origin(folder, index.origin, expected)
        clean = _read_shards(folder, index, "clean", len(index.items))
        condition = _read_shards(folder, index, "condition", len(index.first_frames))
        return cls(index.origin, index.items, index.first_frames, clean, condition)

    def __len__(self) -> int:
        return len(self.items)

    def to(self, device: torch.device | str) -> "LatentCache":
        """Move the tensors, once, to the device that trains; returns itself."""
        self.clean, self.condition = self.clean.to(device), self.condition.to(device)
        self._first_frame_of = self._first_frame_of.to(device)
        return self

    def select_clean(self, indices: np.ndarray | Tensor) -> Tensor:
        """Clean latents of items, shape (len(indices), C, T, H, W)."""
        return self.clean.index_select(0, self._place(indices))

    def select_condition(self, indices: np.ndarray | Tensor) -> Tensor:
        """Condition latents that items begin with, shape (len(indices), C, T, H, W)."""
        return self.condition.index_select(0, self._first_frame_of.index_select(0, self._place(indices)))

    def only(self, conditions: Collection[str]) -> "LatentSubset":
        """The items that show one of these conditions. Raises `InputError` if there is none."""
        return LatentSubset(self, [place for place, name in enumerate(self.conditions) if name in conditions])

    def _place(self, indices: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(indices, dtype=torch.int64, device=self.clean.device)


class LatentSubset:
    """Some items of a cache, numbered from 0, whose tensors are not copied; else like the cache."""

    def __init__(self, cache: LatentCache, places: Sequence[int]) -> None:
        if not len(places):
            raise InputError("no item of the latent cache is of the conditions that are asked for; precompute others")
        self._cache = cache
        self._places = torch.tensor(places)
        self.origin = cache.origin
        self.items = tuple(cache.items[place] for place in places)
        self.conditions = tuple(item.condition for item in self.items)
        self.scenes = tuple(item.scene for item in self.items)
        self.captions = tuple(item.caption for item in self.items)
        self.full_captions = tuple(item.full_caption for item in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def select_clean(self, indices: np.ndarray | Tensor) -> Tensor:
        """Clean latents of items, shape (len(indices), C, T, H, W)."""
        return self._cache.select_clean(self._places[torch.as_tensor(indices)])

    def select_condition(self, indices: np.ndarray | Tensor) -> Tensor:
        """Condition latents that items begin with, shape (len(indices), C, T, H, W)."""
        return self._cache.select_condition(self._places[torch.as_tensor(indices)])


def _check_origin(folder: Path, present: CacheOrigin, expected: CacheOrigin) -> None:
    for name in ("dataset", "autoencoder"):
        one, other = getattr(present, name), getattr(expected, name)
        if one != other:
            raise RecipeError(f"{folder} was made with {name} {one}, but {other} is expected; choose another folder")


def _write_index(index: _Index, folder: Path) -> None:
    write_text(folder / _INDEX, json.dumps({"format": _FORMAT, **dataclasses.asdict(index)}) + "\n")


def _read_index(folder: Path) -> _Index:
    try:
        values = json.loads((folder / _INDEX).read_text())
        if values.pop("format") != _FORMAT:
            raise InputError(f"{folder / _INDEX} is of another format than {_FORMAT}; write the cache anew")
        return _Index(
            origin=CacheOrigin(**values["origin"]),
            dtype=values["dtype"],
            shape=tuple(values["shape"]),
            items=tuple(LatentItem(**item) for item in values["items"]),
            first_frames=tuple(values["first_frames"]),
            shards=tuple((name, count) for name, count in values["shards"]),
        )
    except FileNotFoundError:
        raise InputError(f"{folder} is no latent cache: it has no {_INDEX}; precompute one first") from None
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / _INDEX} cannot be read: {error}; write the cache anew") from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{folder / _INDEX} cannot be read: {error}; write the cache anew") from error


def _read_shards(folder: Path, index: _Index, kind: str, count: int) -> Tensor:
    result = torch.empty((count, *index.shape), dtype=_DTYPES[index.dtype])
    start = 0
    for name, num_tensors in index.shards:
        if not name.startswith(kind):
            continue
        try:
            with safe_open(folder / Path(name).name, framework="pt") as shard:
                tensor = shard.get_tensor(_TENSOR)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(f"{folder / name} is missing or damaged: {error}; write the cache anew") from error
        expected = (num_tensors, *index.shape)
        if tuple(tensor.shape) != expected or tensor.dtype != result.dtype or start + num_tensors > count:
            raise InputError(
                f"{folder / name} should hold {index.dtype} latents of shape {expected}, "
                f"but holds {tensor.dtype} of {tuple(tensor.shape)}; write the cache anew"
            )
        result[start : start + num_tensors] = tensor
        start += num_tensors
    if start != count:
        raise InputError(f"{folder} should hold {count} {kind} latents, but its shards hold {start}; write it anew")
    return result
