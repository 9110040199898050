"""Files of named arrays, each of which describes its content.

A shard is a safetensors file with one tensor, the entries of one array and one shape stacked. Its header names the
array, the keys of the entries, how they were made, and hashes of the entries and of itself. No other file has to agree
with it, so any number of processes may add shards to a folder at once, and each entry can be read and checked on its
own.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors.torch import save
from torch import Tensor

from sememe.data.storage import FileRange, Storage
from sememe.errors import InputError

SUFFIX = ".safetensors"
_FORMAT, _TENSOR = 4, "values"
_ABOUT, _HASH = "sememe", "sememe_sha256"
# For most shards the first bytes contain the whole header, so one read suffices.
_FIRST_BYTES = 64 * 1024
_MAX_HEADER = 100 * 1024 * 1024
Entries = Shaped[Tensor, "entry ..."]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "uint8": torch.uint8}


@dataclass(frozen=True, kw_only=True)
class ArrayAbout:
    """What all shards of an array have in common.

    Attributes:
        origin: Identifies the kind of clips that keys refer to.
        array: Name of the array.
        key: The field of `ClipItem` that names an entry.
        made_by: What the values depend on besides the clips.
        dtype: Precision of the values.
    """

    origin: str
    array: str
    key: str
    made_by: Mapping[str, str]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Description of a shard; the values are still in its file.

    Attributes:
        name: Name of the file.
        about: Description of its array.
        shape: Shape of one entry.
        keys: Keys of the entries, in order.
        hashes: A hash of each entry's bytes.
        start: Offset of the entries in the file, in bytes.
    """

    name: str
    about: ArrayAbout
    shape: tuple[int, ...]
    keys: tuple[str, ...]
    hashes: tuple[str, ...]
    start: int

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry."""
        return math.prod(self.shape) * DTYPES[self.about.dtype].itemsize

    @property
    def stop(self) -> int:
        """Bytes of the file, at whose end the entries end."""
        return self.start + len(self.keys) * self.entry_bytes


@dataclass(frozen=True)
class EntryPlace:
    """Entry number `number` of a shard."""

    shard: Shard
    number: int


def write_shard(
    storage: Storage, name: str, about: ArrayAbout, entries: Mapping[str, Tensor], hashes: Sequence[str] | None = None
) -> Shard:
    """Write entries of one shape to a file, atomically.

    Args:
        storage: Where.
        name: Name of the file.
        about: Their array.
        entries: Values by key, in the array's precision.
        hashes: Hashes of the entries when they were made; None computes them.

    Raises:
        OutputError: It cannot be written.
    """
    values = torch.stack(list(entries.values())).contiguous()
    digests = _hash_entries(values) if hashes is None else tuple(hashes)
    described: dict[str, Any] = {"shape": tuple(values.shape[1:]), "keys": tuple(entries), "hashes": digests}
    text = json.dumps({"format": _FORMAT, **asdict(about), **described})
    content = save({_TENSOR: values}, {_ABOUT: text, _HASH: _hash_text(text)})
    storage.write(name, content)
    start = 8 + int.from_bytes(content[:8], "little")
    return parse_shard({"name": name, "start": start, **asdict(about), **described})


def list_shards(storage: Storage, known: Mapping[str, Shard] | None = None) -> dict[str, Shard]:
    """List the shards of a folder by name, sorted; of those that are not known, the headers are read.

    Raises:
        InputError: A file is not a shard, is cut short, or cannot be read.
    """
    found = {}
    for name, size in storage.list_sizes(SUFFIX).items():
        shard = None if known is None else known.get(name)
        if shard is not None and size != shard.stop:
            raise _damage(storage, name, f"it has {size:,} bytes instead of {shard.stop:,}")
        found[name] = read_shard(storage, name) if shard is None else shard
    return found


def read_shard(storage: Storage, name: str) -> Shard:
    """Read the description of a shard.

    Raises:
        InputError: The file is not a shard, is truncated, or cannot be read.
    """
    try:
        size = storage.measure(name)
        (begin,) = storage.read([FileRange(name, 0, min(size, _FIRST_BYTES))])
        length = int.from_bytes(begin[:8], "little")
        if not 0 < length <= min(_MAX_HEADER, size - 8):
            raise ValueError("it is no safetensors file, or is cut short")
        if len(begin) < 8 + length:
            begin += storage.read([FileRange(name, len(begin), 8 + length)])[0]
        header = json.loads(begin[8 : 8 + length])
        metadata = header["__metadata__"]
        if _hash_text(metadata[_ABOUT]) != metadata[_HASH]:
            raise ValueError("its header is not the one that was written to it")
        values = json.loads(metadata[_ABOUT])
        if values.pop("format") != _FORMAT:
            raise ValueError("it is of another format")
        if 8 + length + header[_TENSOR]["data_offsets"][1] != size:
            raise ValueError("it is cut short")
        return parse_shard({"name": name, "start": 8 + length, **values})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damage(storage, name, str(error)) from error


def parse_shard(values: Mapping[str, Any]) -> Shard:
    """Make a shard from its fields and those of `ArrayAbout`. Raises `KeyError` or `TypeError` for others."""
    return Shard(
        name=values["name"],
        about=ArrayAbout(**{name: values[name] for name in ArrayAbout.__dataclass_fields__}),
        shape=tuple(values["shape"]),
        keys=tuple(values["keys"]),
        hashes=tuple(values["hashes"]),
        start=values["start"],
    )


def read_values(storage: Storage, shard: Shard) -> Entries:
    """Read all entries of a shard.

    Raises:
        InputError: They are not those that were written, or cannot be read.
    """
    (content,) = _read(storage, [FileRange(shard.name, shard.start, shard.stop)])
    if len(content) != shard.stop - shard.start:
        raise _damage(storage, shard.name, "it is cut short")
    values = torch.frombuffer(bytearray(content), dtype=DTYPES[shard.about.dtype]).reshape(-1, *shard.shape)
    if _hash_entries(values) != shard.hashes:
        raise _damage(storage, shard.name, "its values are not those that were written to it")
    return values


def read_entries(storage: Storage, places: Sequence[EntryPlace]) -> Entries:
    """Read entries of one array and shape, and nothing else.

    Raises:
        InputError: They are not those that were written, or cannot be read.
    """
    ranges = []
    for place in places:
        start = place.shard.start + place.number * place.shard.entry_bytes
        ranges.append(FileRange(place.shard.name, start, start + place.shard.entry_bytes))
    contents = _read(storage, ranges)
    for place, content in zip(places, contents, strict=True):
        if _hash(content) != place.shard.hashes[place.number]:
            raise _damage(storage, place.shard.name, "its values are not those that were written to it")
    about, shape = places[0].shard.about, places[0].shard.shape
    return torch.frombuffer(bytearray(b"".join(contents)), dtype=DTYPES[about.dtype]).reshape(-1, *shape)


def find_damaged(storage: Storage) -> list[str]:
    """The names of damaged shards of a folder; reads all shards completely."""
    damaged = []
    for name in storage.list_sizes(SUFFIX):
        try:
            read_values(storage, read_shard(storage, name))
        except InputError:
            damaged.append(name)
    return damaged


def _read(storage: Storage, ranges: Sequence[FileRange]) -> list[bytes]:
    try:
        return storage.read(ranges)
    except InputError as error:
        raise InputError(f"{error}; encode the entries again with `sememe precompute`") from error


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_entries(values: Tensor) -> tuple[str, ...]:
    rows = values.contiguous().reshape(len(values), -1).view(torch.uint8).numpy()
    return tuple(_hash(row.data) for row in rows)


def _hash(content: bytes | memoryview) -> str:
    """Sixteen digits suffice to detect damage, and keep headers short."""
    return hashlib.sha256(content).hexdigest()[:16]


def _damage(storage: Storage, name: str, reason: str) -> InputError:
    return InputError(
        f"{storage}/{name} is damaged: {reason}; encode its entries again with `sememe precompute --verify`"
    )
