"""The index of a cache of arrays: its clips and its shards, in one file that is written last.

The file has one JSON value per line: a header, the clips field by field, a line for each shard, and a hash of all
these. It is read line by line, so that a million clips need little more memory than their texts.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from io import BytesIO
from typing import Any

from sememe.data.array_shards import SUFFIX, Shard, parse_shard
from sememe.data.storage import FileRange, Storage
from sememe.errors import InputError

INDEX_NAME = "index.jsonl"
_FORMAT = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipItem:
    """Description of a cached clip.

    `clip` and `first_frame` name its frames and its first frame; clips with the same first frame share one
    `first_frame`. An expert is trained on clips of `split` "train"; a backbone is trained on all, but captions do not
    name the conditions of other splits. `references` are the clips that may serve as its reference; none means all
    others of its condition. Clips of one `bucket` have one length and size. Where one thing happens after another,
    `segment_captions` name each beside who and where, and `segment_ends` are the seconds at which they end.
    """

    clip: str
    condition: str
    scene: str
    first_frame: str
    caption: str = ""
    full_caption: str = ""
    split: str = "train"
    references: tuple[str, ...] = ()
    bucket: str = ""
    segment_captions: tuple[str, ...] = ()
    segment_ends: tuple[float, ...] = ()


FIELDS = tuple(field.name for field in fields(ClipItem))


@dataclass(frozen=True, kw_only=True)
class CacheIndex:
    """The clips of a cache and its shards.

    Attributes:
        origin: Identifies the kind of clips that keys refer to.
        version: Identifies these clips.
        columns: The fields of `ClipItem` by name, with one value a clip.
        shards: Its shards, those of one array and shape one after another.
    """

    origin: str
    version: str
    columns: Mapping[str, tuple[Any, ...]]
    shards: tuple[Shard, ...]

    @cached_property
    def num_items(self) -> int:
        """Number of clips."""
        return len(self.columns["clip"])

    def item(self, index: int) -> ClipItem:
        """Description of a clip."""
        return ClipItem(**{name: column[index] for name, column in self.columns.items()})


def make_index(origin: str, version: str, items: Sequence[ClipItem], shards: Sequence[Shard]) -> CacheIndex:
    """Make the index of some clips and shards."""
    columns = {name: tuple(getattr(item, name) for item in items) for name in FIELDS}
    return CacheIndex(origin=origin, version=version, columns=columns, shards=sort_shards(shards))


def sort_shards(shards: Sequence[Shard]) -> tuple[Shard, ...]:
    """Shards by array, shape and name."""
    return tuple(sorted(shards, key=lambda shard: (shard.about.array, shard.shape, shard.name)))


def write_index(index: CacheIndex, storage: Storage) -> None:
    """Write an index. Raises `OutputError` if it cannot be written."""
    head = {"format": _FORMAT, "origin": index.origin, "version": index.version, "num_shards": len(index.shards)}
    lines = [head, *(_fold(index.columns[name]) for name in FIELDS), *(_describe(shard) for shard in index.shards)]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    storage.write(INDEX_NAME, content + json.dumps(hashlib.sha256(content).hexdigest()).encode() + b"\n")


def has_index(storage: Storage) -> bool:
    """Whether a folder holds a finished cache."""
    return storage.has(INDEX_NAME)


def read_index(storage: Storage) -> CacheIndex:
    """Read an index.

    Raises:
        InputError: It is missing, damaged or of another format.
    """
    if not has_index(storage):
        if storage.list_sizes(SUFFIX):
            raise InputError(f"the cache {storage} is not finished; finish it with `sememe precompute`")
        raise InputError(f"{storage} holds no cache; make one with `sememe precompute`")
    try:
        (content,) = storage.read([FileRange(INDEX_NAME, 0, storage.measure(INDEX_NAME))])
        return _parse(content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{storage}/{INDEX_NAME} cannot be read: {error}; make it again with `sememe precompute`"
        ) from error


def _describe(shard: Shard) -> dict[str, Any]:
    own = {name: getattr(shard, name) for name in ("name", "shape", "keys", "hashes", "start")}
    return {**asdict(shard.about), **own}


def _parse(content: bytes) -> CacheIndex:
    file, digest = BytesIO(content), hashlib.sha256()

    def read() -> Any:
        line = file.readline()
        digest.update(line)
        return json.loads(line)

    head = read()
    if not isinstance(head, dict) or head.get("format") != _FORMAT:
        raise ValueError(f"it is not of format {_FORMAT}")
    columns: dict[str, tuple[Any, ...]] = {}
    for name in FIELDS:
        values = _unfold(read())
        same = next((column for column in columns.values() if column == values), None)
        columns[name] = _keep_once(values) if same is None else same
    keys = _SharedKeys(columns)
    shards = [keys.share(parse_shard(read())) for _ in range(head["num_shards"])]
    expected = digest.hexdigest()
    if read() != expected:
        raise ValueError("it holds something else than was written to it")
    return CacheIndex(origin=head["origin"], version=head["version"], columns=columns, shards=tuple(shards))


def _fold(column: Sequence[Any]) -> Any:
    """A column as JSON: its values, or a common value and its count."""
    first = next(iter(column), None)
    is_one = all(value == first for value in column)
    return {"value": first, "count": len(column)} if is_one else list(column)


def _unfold(line: Any) -> tuple[Any, ...]:
    values: Any = [line["value"]] if isinstance(line, dict) else line
    if values and isinstance(values[0], list):
        values = map(tuple, values)
    return tuple(values) * (int(line["count"]) if isinstance(line, dict) else 1)


def _keep_once(values: Sequence[Any]) -> tuple[Any, ...]:
    """The values, equal ones as one object, because most texts occur many times."""
    known: dict[Any, Any] = {}
    return tuple(map(known.setdefault, values, values))


class _SharedKeys:
    """Replaces keys of shards by the equal texts of the columns, to store each text once."""

    def __init__(self, columns: Mapping[str, tuple[Any, ...]]) -> None:
        self._columns = columns
        self._places: dict[str, dict[Any, int]] = {}

    def share(self, shard: Shard) -> Shard:
        column = self._columns.get(shard.about.key, ())
        if shard.about.key not in self._places:
            self._places[shard.about.key] = {key: place for place, key in enumerate(column)}
        # In most caches the keys of a shard are consecutive, because they were encoded together.
        start = self._places[shard.about.key].get(shard.keys[0], 0) if shard.keys else 0
        keys = column[start : start + len(shard.keys)]
        return replace(shard, keys=keys) if keys == shard.keys else shard
