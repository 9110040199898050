"""Files of named arrays, each of which says what it holds.

A shard is a safetensors file with one tensor, the entries of one array stacked. Its header names the array, the keys of
the entries, what they were made by, and hashes of the values and of itself. No other file has to agree with it, so any
number of processes may add shards to a folder at once.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sememe.errors import InputError
from sememe.files import atomic_path

_FORMAT, _TENSOR = 3, "values"
_ABOUT, _HASH = "sememe", "sememe_sha256"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "uint8": torch.uint8}


@dataclass(frozen=True, kw_only=True)
class ShardHeader:
    """What a shard says of its entries.

    Attributes:
        origin: What tells clips of one key from those of all other origins.
        array: Name of the array.
        key: The field of `ClipItem` that names an entry.
        made_by: What decides on the values besides the clips.
        dtype: Precision of the values.
        shape: Shape of one entry.
        keys: Keys of the entries, in order.
    """

    origin: str
    array: str
    key: str
    made_by: Mapping[str, str]
    dtype: str
    shape: tuple[int, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file and its header; the values, of which `sha256` is the hash, are still on the disk."""

    path: Path
    header: ShardHeader
    sha256: str


def list_shards(folder: Path) -> list[Path]:
    """The paths of all shards of a folder, by name."""
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))


def write_shard(path: Path, header: ShardHeader, values: Tensor) -> Shard:
    """Write entries (key, ...) to a file, or nothing. Raises `OutputError` if it cannot be written."""
    assert values.shape == (len(header.keys), *header.shape), f"{values.shape} of {header.array}"
    digest = _hash_values(values)
    about = json.dumps({"format": _FORMAT, **asdict(header), "sha256": digest})
    with atomic_path(path) as part:
        save_file({_TENSOR: values}, part, {_ABOUT: about, _HASH: _hash_text(about)})
    return Shard(path=path, header=header, sha256=digest)


def read_header(path: Path) -> Shard:
    """Read what a shard says of itself.

    Raises:
        InputError: The file is no shard, is cut short, or cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if _hash_text(metadata[_ABOUT]) != metadata[_HASH]:
            raise ValueError("its header is not the one that was written to it")
        values = json.loads(metadata[_ABOUT])
        if values.pop("format") != _FORMAT:
            raise ValueError("it is of another format")
        digest = values.pop("sha256")
        return Shard(path=path, header=_parse_header(values), sha256=digest)
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damage(path, str(error)) from error


def read_values(shard: Shard) -> Tensor:
    """Read the entries of a shard, (key, ...).

    Raises:
        InputError: They are not those that were written, or cannot be read.
    """
    try:
        with safe_open(shard.path, framework="pt") as file:
            values: Tensor = file.get_tensor(_TENSOR)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _damage(shard.path, str(error)) from error
    if _hash_values(values) != shard.sha256:
        raise _damage(shard.path, "its values are not those that were written to it")
    return values


def _parse_header(values: Mapping[str, Any]) -> ShardHeader:
    lists = {name: tuple(values[name]) for name in ("shape", "keys")}
    return ShardHeader(**{**values, **lists})


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_values(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _damage(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged: {reason}; encode its entries again with `sememe precompute --verify`")


def find_damaged(shards: Sequence[Path]) -> list[Path]:
    """Those of some shards that are damaged; reads all of each."""
    damaged = []
    for path in shards:
        try:
            read_values(read_header(path))
        except InputError:
            damaged.append(path)
    return damaged
