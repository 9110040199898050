"""Generations that are read from a file: a YAML file, or the record beside an earlier result."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from sememe.compute.loading_settings import LoadingSettings
from sememe.errors import InputError
from sememe.records import convert, flatten, list_fields, to_plain
from sememe.system import SAVING, System, SystemInputs

_MAX_SIZE = 10_000_000  # bytes; a record takes some thousands


@dataclass(frozen=True)
class StoredRequest:
    """What a file asks for; flags and defaults decide on what it leaves out.

    Attributes:
        model: Name of the model.
        seed: Seed.
        inputs: Fields of the system's inputs.
        settings: Settings by name or dotted key.
        loading: Fields of the loading settings.
    """

    model: str | None = None
    seed: int | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    loading: Mapping[str, Any] = field(default_factory=dict)


def describe_request(
    model: str, inputs: SystemInputs, settings: Mapping[str, Any], loading: LoadingSettings
) -> dict[str, Any]:
    """Return a request as a record holds it, from which `read_request` makes it again from any folder.

    Output files are no part of it: a repeated request does not replace them.
    """
    read = [name for name in list_fields(type(inputs)) if not name.startswith(SAVING)]
    given = {name: _absolute(getattr(inputs, name)) for name in read}
    usual, used = flatten(LoadingSettings()), flatten(loading.with_absolute_paths())
    return {
        "model": model,
        "inputs": {name: to_plain(value) for name, value in given.items() if value not in (None, ())},
        "settings": {key: to_plain(_absolute(value)) for key, value in settings.items()},
        "loading": {key: to_plain(value) for key, value in used.items() if value != usual[key]},
    }


def read_request(path: Path, system: System) -> StoredRequest:
    """Read a YAML file with any of the entries of `StoredRequest`, or the record of an earlier result.

    Raises:
        InputError: It cannot be read, is of another system, or holds something else.
    """
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= _MAX_SIZE):  # a pipe would never end
            raise InputError(f"expected {path} to be a file of at most {_MAX_SIZE / 1e6:g} MB")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"expected a YAML file or the JSON beside a result, but {path} cannot be read: {reason}"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"expected entries such as model, seed and settings in {path}, got {type(content).__name__}")
    if content.get("system", system.name) != system.name:
        raise InputError(f"expected a request for {system.name}, but {path} is one for {content['system']}")
    if "request" in content:
        content = {"seed": content.get("seed"), **_read_group(path, content, "request")}
    content.pop("system", None)
    unknown = content.keys() - {each.name for each in fields(StoredRequest)}
    if unknown:
        known = ", ".join(each.name for each in fields(StoredRequest))
        raise InputError(f"expected entries {known} in {path}, got {', '.join(sorted(map(str, unknown)))}")
    assert system.generation is not None
    stored = StoredRequest(
        model=convert(content.get("model"), str | None, "model"),
        seed=convert(content.get("seed"), int | None, "seed"),
        inputs=_read_inputs(path, _read_group(path, content, "inputs"), system.generation.inputs),
        settings=_read_group(path, content, "settings"),
        loading=_read_group(path, content, "loading"),
    )
    LoadingSettings().override(**stored.loading)
    return stored


def _read_group(path: Path, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    group = content.get(name) or {}
    if not isinstance(group, dict) or not all(isinstance(key, str) for key in group):
        raise InputError(f"expected names and values under {name} in {path}, got {group!r}")
    return group


def _read_inputs(path: Path, given: Mapping[str, Any], kind: type[SystemInputs]) -> dict[str, Any]:
    known = list_fields(kind)
    for name in given.keys() - known.keys():
        raise InputError(f"expected inputs {', '.join(known)} in {path}, got {name}")
    values = {name: (value,) if _is_alone(value, known[name].type) else value for name, value in given.items()}
    return {name: convert(value, known[name].type, name) for name, value in values.items()}


def _is_alone(value: Any, kind: Any) -> bool:
    """Return whether a value is one text where there may be several, which may hold commas."""
    return isinstance(value, str) and getattr(kind, "__origin__", None) is tuple


def _absolute(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_absolute, value))
    return value.absolute() if isinstance(value, Path) else value
