"""Settings records: nested frozen dataclasses that are documented, checked, listed and changed by dotted key.

A field's documentation is its entry under `Attributes:` in the docstring of its class; its type says what it may hold.
Imports no torch.
"""

import dataclasses
import difflib
import functools
import inspect
import re
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, dataclass_transform

from sememe.errors import InputError, ModelError

R = TypeVar("R")
S = TypeVar("S", bound="Record")


@dataclass(frozen=True)
class Range:
    """Bounds of a number, written as `Annotated[int, Range(least=1)]`."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    multiple_of: int | None = None

    def check(self, value: float, name: str) -> None:
        """Raise `InputError` for a number out of bounds (NaN always is)."""
        if self.least is not None and not self.least <= value < float("inf"):
            raise InputError(f"expected {name} of at least {self.least:g}, got {value}")
        if self.above is not None and not self.above < value < float("inf"):
            raise InputError(f"expected {name} above {self.above:g}, got {value}")
        if self.most is not None and not value <= self.most:
            raise InputError(f"expected {name} of at most {self.most:g}, got {value}")
        if self.multiple_of is not None and value % self.multiple_of:
            raise InputError(f"expected {name} as a multiple of {self.multiple_of}, got {value}")


Count = Annotated[int, Range(least=1)]
Whole = Annotated[int, Range(least=0)]
Scale = Annotated[float, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(least=0, most=1)]
Batching = Literal["sequential", "batched"]
"""Whether variants of guidance are predicted one after the other, or those of one kind together."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Record:
    """Base of settings records, each a frozen dataclass of keywords: converts and checks each field by its type.

    Raises:
        InputError: A value is of another type, or out of range.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        own: Any = type(self)
        for name, kind in _hints(own).items():
            object.__setattr__(self, name, convert(getattr(self, name), kind, name))

    def override(self: S, **changes: Any) -> S:  # noqa: PYI019 (beartype checks methods one by one and refuses Self)
        """Return a copy with fields replaced, each by its own name, in whatever group it is; None leaves a field.

        Raises:
            InputError: There is no such field, or a value is not valid.
        """
        return replace_fields(self, {name: value for name, value in changes.items() if value is not None})

    @classmethod
    def from_config(cls: type[S], config: Mapping[str, Any] | None) -> S:  # noqa: PYI019 (as above)
        """Return the settings that a model was saved with, its `generation_defaults` by field name.

        Raises:
            ModelError: A field is unknown or not valid.
        """
        try:
            return replace_fields(cls(), config or {})
        except (InputError, TypeError) as error:
            raise ModelError(f"generation_defaults of this model are not valid: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return all fields of all groups by their own names, as values that JSON can hold."""
        return {key.rpartition(".")[2]: to_plain(value) for key, value in flatten(self).items()}


class SizeSettings(Record):
    """The shape of a result.

    Attributes:
        height: Height of the result in pixels.
        width: Width of the result in pixels.
        num_frames: Frames of the result.
        fps: Frames per second of the result.
    """

    height: Count = 480
    width: Count = 832
    num_frames: Count = 81
    fps: Positive = 16.0


@dataclass(frozen=True)
class Field:
    """One field of a record, or of a group in it.

    Attributes:
        key: Dotted key.
        type: As annotated.
        default: Value that a new record has; `dataclasses.MISSING` without one.
        help: Documentation.
    """

    key: str
    type: Any
    default: Any
    help: str


def list_fields(kind: type, prefix: str = "", defaults: object = None) -> dict[str, Field]:
    """Return the fields of a record class by dotted key, in order.

    Args:
        kind: Class of the record.
        prefix: What stands before each key.
        defaults: Record whose values are the defaults; None for those of the class.
    """
    hints, docs = _hints(kind), _docs(kind)
    found: dict[str, Field] = {}
    for item in dataclasses.fields(kind):
        key, hint = f"{prefix}{item.name}", hints[item.name]
        default = getattr(defaults, item.name, find_default(item))
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= list_fields(hint, f"{key}.", None if default is dataclasses.MISSING else default)
        else:
            found[key] = Field(key, hint, default, docs.get(item.name, ""))
    return found


def flatten(record: object) -> dict[str, Any]:
    """Return the values of a record by dotted key, in order."""
    values: dict[str, Any] = {}
    for name, value in _parts(record).items():
        if _is_group(value):
            values |= {f"{name}.{key}": inner for key, inner in flatten(value).items()}
        else:
            values[name] = value
    return values


def flatten_defaults(record: object) -> dict[str, Any]:
    """Return what the values of a record by dotted key are where nothing is given, as far as they have a default."""
    values: dict[str, Any] = {}
    for name, value in _parts(record).items():
        if _is_group(value):
            values |= {f"{name}.{key}": inner for key, inner in flatten_defaults(value).items()}
        elif not isinstance(record, tuple):
            values[name] = find_default(type(record).__dataclass_fields__[name])  # type: ignore[attr-defined]
    return {key: value for key, value in values.items() if value is not dataclasses.MISSING}


def find_default(item: Any) -> Any:
    """Return the default of a field of a dataclass, or `dataclasses.MISSING`."""
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def _parts(group: Any) -> dict[str, Any]:
    """Return the fields of a record, or the records of a tuple by their names."""
    if isinstance(group, tuple):
        return {record.name: record for record in group}
    return {item.name: getattr(group, item.name) for item in dataclasses.fields(group)}


def _is_group(value: Any) -> bool:
    """Whether fields lie below a value: it is a record, or a tuple of records that have names."""
    if isinstance(value, tuple):
        return len(value) > 0 and all(dataclasses.is_dataclass(each) and hasattr(each, "name") for each in value)
    return dataclasses.is_dataclass(value)


def to_plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {key: to_plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def apply_overrides(record: R, overrides: Sequence[str]) -> R:
    """Return a copy of a record with fields replaced, such as `["training.learning_rate=1e-3"]`.

    Values are read by the type of the field: numbers, true/false, words, paths, comma-separated or JSON lists, "none"
    where a field may be None. All are applied together, so that settings that are valid only together can be given in
    any order.

    Raises:
        InputError: A key is unknown (the message names the nearest) or given twice, or a value is not valid.
    """
    return replace_fields(record, parse_overrides(overrides, flatten(record)))


def parse_overrides(overrides: Iterable[str], keys: Iterable[str]) -> dict[str, str]:
    """Split `key=value` texts and complete their keys.

    Raises:
        InputError: A text is not of that form, or a key is unknown or given twice.
    """
    keys = list(keys)
    values: dict[str, str] = {}
    for override in overrides:
        given, equals, text = override.partition("=")
        if not (equals and given.strip()):
            raise InputError(f"an override must look like key=value, got {override!r}")
        key = find_key(given.strip(), keys)
        if key in values:
            raise InputError(f"{key} is given twice; give it once")
        values[key] = text.strip()
    return values


def replace_fields(record: R, changes: Mapping[str, Any]) -> R:
    """Return a copy of a record with fields replaced by key; values may be texts, as in `apply_overrides`.

    Raises:
        InputError: A key is unknown, or a value is not valid.
    """
    known = list(flatten(record))
    return _replace(record, {find_key(key, known): value for key, value in changes.items()}, prefix="")


def find_key(key: str, known: Sequence[str]) -> str:
    """Return the full form of a key, whose leading groups may be left out where the rest is unique.

    Raises:
        InputError: There is no such field, there are several, or it is a group.
    """
    if key in known:
        return key
    inner = [name for name in known if name.endswith(f".{key}")]
    if len(inner) == 1:
        return inner[0]
    if inner:
        raise InputError(f"there are several settings {key}; give one of them: {', '.join(inner)}")
    below = [name for name in known if name.startswith(f"{key}.")]
    if below:
        raise InputError(f"{key} is a group of settings; set one of them: {', '.join(below)}")
    # The right name in the wrong group is the commonest slip, then a part of a name, then spelling.
    by_name = {name.rpartition(".")[2]: name for name in reversed(known)}
    last = key.rpartition(".")[2]
    similar = difflib.get_close_matches(last, by_name, n=1) or [name for name in by_name if last in name]
    similar = [last] if last in by_name else similar
    groups = ", ".join(dict.fromkeys(name.partition(".")[0] for name in known)) or "none"
    hint = f"the nearest is {by_name[similar[0]]}" if similar else f"settings and groups are {groups}"
    raise InputError(f"there is no setting {key}; {hint}")


def convert(value: Any, kind: Any, name: str) -> Any:
    """Return a value, or the text of one, as the type of a field.

    Raises:
        InputError: It is of another type, or out of range; the message begins with `name`.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        converted = convert(value, arguments[0], name)
        arguments[1].check(converted, name)
        return converted
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, name)
    if origin is Literal:
        for choice in arguments:
            if value == choice or value == str(choice):
                return choice
        raise InputError(f"{name} must be one of {', '.join(map(str, arguments))}, got {value!r}")
    if origin is tuple:
        return _convert_tuple(value, arguments, name)
    if origin is Mapping:
        return _convert_mapping(value, arguments[1], name)
    if dataclasses.is_dataclass(kind) and isinstance(value, typing.cast(type, kind)):
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return typing.cast(Any, kind)(**value)
    if kind in _SCALARS:
        return _convert_scalar(value, kind, name)
    if kind is Any:
        return value
    raise InputError(f"{name} cannot be set from a value; set it where the record is made")


_WORDS = {"true": True, "false": False}
_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def _convert_scalar(value: Any, kind: Any, name: str) -> Any:
    if kind is bool and isinstance(value, str):
        value = _WORDS.get(value.lower(), value)
    is_flag, is_text = isinstance(value, bool), isinstance(value, str)
    try:
        if kind is bool and is_flag:
            return value
        if kind is str and is_text:
            return value
        if kind is Path and isinstance(value, (str, Path)):
            return Path(value)
        if kind is float and not is_flag:
            return float(value)
        if kind is int and not is_flag and (is_text or int(value) == value):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{name} must be {_SCALARS[kind]}, got {value!r}")


def _convert_union(value: Any, choices: Sequence[Any], name: str) -> Any:
    if type(None) in choices and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    problems: list[InputError] = []
    for choice in choices:
        if choice is not type(None):
            try:
                return convert(value, choice, name)
            except InputError as error:
                problems.append(error)
    raise problems[0]


def _convert_tuple(value: Any, kinds: Sequence[Any], name: str) -> tuple[Any, ...]:
    parts = _split(value, name) if isinstance(value, str) else value
    if not isinstance(parts, Iterable):
        raise InputError(f"{name} must be a list, got {reprlib.repr(value)}")
    items = sorted(parts) if isinstance(parts, (set, frozenset)) else list(parts)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(convert(item, kinds[0], name) for item in items)
    if len(items) != len(kinds):
        raise InputError(f"{name} must be {len(kinds)} values separated by commas, got {value!r}")
    return tuple(convert(item, kind, name) for item, kind in zip(items, kinds, strict=True))


def _convert_mapping(value: Any, kind: Any, name: str) -> dict[str, Any]:
    """Convert a mapping, or a text such as `a:1,b:2`."""
    if isinstance(value, str):
        parts = [part.rpartition(":") for part in value.split(",") if part.strip()]
        value = {key.strip(): item for key, _, item in parts} if all(colon for _, colon, _ in parts) else value
    if not isinstance(value, Mapping):
        raise InputError(f"{name} must be names and values such as a:1,b:2, got {value!r}")
    return {key: convert(item, kind, f"{name} for {key!r}") for key, item in value.items()}


def _split(text: str, name: str) -> list[Any]:
    """Read a JSON list, or words between commas."""
    import json

    if text.startswith('["'):
        try:
            return list(json.loads(text))
        except ValueError:
            raise InputError(f"{name} must be a list of words or a JSON list, got {text!r}") from None
    return [part.strip() for part in text.strip("()[]").split(",") if part.strip()]


def _replace(record: Any, values: Mapping[str, Any], prefix: str) -> Any:
    own: Any = type(record)
    changes: dict[str, Any] = {}
    for name, part in _parts(record).items():
        below = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{name}.")}
        if below:
            changes[name] = _replace(part, below, f"{prefix}{name}.")
        elif name in values:
            changes[name] = convert(values[name], _hints(own)[name], f"{prefix}{name}")
    if isinstance(record, tuple):
        return tuple(changes.get(each.name, each) for each in record)
    return dataclasses.replace(record, **changes)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind)}


@functools.cache
def _docs(kind: Any) -> dict[str, str]:
    """Read the entries under `Attributes:` in a class's docstring."""
    section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
