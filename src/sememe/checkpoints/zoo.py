"""Models by name: the built-in ones, folders, and repositories of the Hugging Face hub.

Each is in `weights/<system>/<size>/` beside this file, in its pipeline's own layout, with a card (`README.md`) whose
front matter holds `description`, `license` and `source`. Nothing here needs torch, so that listing takes no time.
"""

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sememe.checkpoints.headers import CONFIG_NAME, MODEL_INDEX, PICKLE_REASON, PICKLED_SUFFIXES, read_header, read_json
from sememe.errors import ModelError

WEIGHTS_FOLDER = Path(__file__).parent / "weights"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_UNKNOWN = "not stated"
# By which a component's folder is known to be one, where that is not config.json.
_CONFIG_FILES = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "image_processor": "preprocessor_config.json",
    "prior_scheduler": "scheduler_config.json",
    "depth_processor": "preprocessor_config.json",
    "lora": "pytorch_lora_weights.safetensors",
}
_DOWNLOADED = [MODEL_INDEX, "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model"]


@dataclass(frozen=True)
class ModelRecord:
    """What a model's folder says of itself.

    Attributes:
        name: Name by which a built-in model is loaded: `<system>/<size>`.
        pipeline: Class of its pipeline.
        description: One sentence from its card.
        license: SPDX name, from its card.
        source: Origin of its weights, from its card.
        height: Pixels of what it makes by default.
        width: Pixels, the same.
        num_frames: Frames, the same.
        fps: Frames a second, the same.
        num_parameters: Numbers in all its safetensors files.
        num_bytes: Size of those files.
        folder: Where it is.
    """

    name: str
    pipeline: str
    description: str
    license: str
    source: str
    height: int | None
    width: int | None
    num_frames: int | None
    fps: float | None
    num_parameters: int
    num_bytes: int
    folder: Path


def list_models() -> list[ModelRecord]:
    """Return the models that come with the package, sorted by name."""
    return [describe_model(WEIGHTS_FOLDER / name) for name in _names()]


def find_folder(name: str | Path, revision: str | None = None, system: str | None = None, **hub: Any) -> Path:
    """Return the local folder of a model: a built-in one, a folder, or a repository on the Hugging Face hub.

    Args:
        name: Name or folder of the model.
        revision: Branch, tag or commit of a repository on the hub; None for its newest.
        system: As in `resolve_model`.
        hub: Arguments of the hub's client, such as `cache_dir`, `token` and `local_files_only`.

    Raises:
        ModelError: There is no such model, or a revision is asked of one that is no repository.
    """
    if is_hub_id(name):
        return _download(str(name), revision, hub)
    if revision is not None:
        raise ModelError(f"expected a repository of the hub (owner/name) to go with revision {revision}, got {name}")
    if not _is_folder(name) and os.path.isfile(name):  # noqa: PTH113 (does not raise for names that no file can have)
        reason = PICKLE_REASON if Path(name).suffix in PICKLED_SUFFIXES else "give the folder of a whole model"
        raise ModelError(f"expected a model folder, got the file {name}; {reason}")
    return resolve_model(name, system)


def resolve_model(name: str | Path, system: str | None = None) -> Path:
    """Return the folder of a built-in model, by its name, or a local folder as it is.

    A built-in model goes before a folder of its name.

    Args:
        name: Built-in name, such as `video-as-prompt/tiny` or, where that is clear, `tiny` alone; the folder of a part
            of one, such as `video-as-prompt/tiny/vae`; or a folder.
        system: System of which `tiny` alone is a model; None for any that has one.

    Raises:
        ModelError: There is neither such a name nor such a folder, or several systems have such a model.
    """
    text, names = str(name), _names()
    if not text.strip():
        raise ModelError("expected the name or the folder of a model, got an empty text")
    if isinstance(name, str):
        found = [each for each in names if text == each or f"{system or each.partition('/')[0]}/{text}" == each]
        if len(found) > 1:
            raise ModelError(f"expected one model, but several systems have a {text}; say which: {', '.join(found)}")
        if found:
            return WEIGHTS_FOLDER / found[0]
        if text.rpartition("/")[0] in names and (WEIGHTS_FOLDER / text).is_dir():
            return WEIGHTS_FOLDER / text
    if _is_folder(name):
        return Path(name)
    if system is not None and system not in _systems(names):
        raise ModelError(
            f"expected a model folder, because {system} comes with no built-in model yet, got {text!r}; train one with "
            "its recipes (sememe train --list shows them)"
        )
    close = difflib.get_close_matches(text, [*names, *(each.partition("/")[2] for each in names)], n=1)
    advice = f"; did you mean {close[0]}?" if close else ""
    there_is = f"a built-in model ({', '.join(names)})" if names else "a built-in model (there is none)"
    raise ModelError(f"expected {there_is} or a model folder, but {text[:200]!r} is neither{advice}")


def qualify_name(name: str, system: str) -> str:
    """Return the full name of a system's built-in model that is named by its size alone; other names as they are."""
    full = f"{system}/{name}"
    return full if full in _names() else name


def _is_folder(name: str | Path) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # longer than names of files are, or not one at all
        return False


def is_hub_id(name: str | Path) -> bool:
    """Return whether a name has the form `owner/name` of the hub, and is no local folder or built-in model."""
    return (
        isinstance(name, str)
        and _HUB_ID.fullmatch(name) is not None
        and name.partition("/")[0] not in _systems(_names())
        and not _is_folder(name)
    )


def find_part(source: str | Path, part: str) -> Path:
    """Return the folder of one part of a model; its class is checked where it is loaded.

    Args:
        source: Folder of a run (its `model/` is searched) or of a model, built-in name, or the part's own folder.
        part: Component, such as "vae", or a part that only one system has, such as "expert".

    Raises:
        ModelError: It is not there.
    """
    folder = resolve_model(source)
    for place in (folder / "model" / part, folder / part, folder / "model", folder):
        if (place / config_name(part)).is_file():
            return place
    if (folder / "checkpoints").is_dir() and not (folder / "model").is_dir():
        raise ModelError(f"expected a complete run in {folder}, but it has no model with a {part} yet; resume it first")
    raise ModelError(f"expected a run, a model or a folder with the {part}, but {source} holds none")


def config_name(name: str) -> str:
    """Return the name of the configuration file of a component or part."""
    return _CONFIG_FILES.get(name, CONFIG_NAME)


def describe_model(folder: Path) -> ModelRecord:
    """Read what a model's folder says of itself.

    Raises:
        ModelError: The folder holds no model.
    """
    index = read_json(folder / MODEL_INDEX)
    made = index.get("generation_defaults") or {}
    card = _read_card(folder / "README.md")
    files = sorted(folder.rglob("*.safetensors"))
    return ModelRecord(
        name="/".join(folder.absolute().parts[-2:]),
        pipeline=str(index.get("_class_name")),
        description=card.get("description", _UNKNOWN),
        license=card.get("license", _UNKNOWN),
        source=card.get("source", _UNKNOWN),
        height=made.get("height"),
        width=made.get("width"),
        num_frames=made.get("num_frames"),
        fps=made.get("fps"),
        num_parameters=sum(math.prod(tensor.shape) for path in files for tensor in read_header(path)),
        num_bytes=sum(path.stat().st_size for path in files),
        folder=folder,
    )


def _names() -> list[str]:
    return sorted(
        path.parent.relative_to(WEIGHTS_FOLDER).as_posix() for path in WEIGHTS_FOLDER.glob(f"*/*/{MODEL_INDEX}")
    )


def _systems(names: Iterable[str]) -> set[str]:
    return {name.partition("/")[0] for name in names}


def _read_card(path: Path) -> Mapping[str, str]:
    """The front matter of a model card; empty where there is none."""
    if not path.is_file():
        return {}
    parts = path.read_text(encoding="utf-8").split("---\n", 2)
    if len(parts) != 3 or parts[0].strip():
        return {}
    try:
        content = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise ModelError(f"the front matter of {path} is not valid YAML: {' '.join(str(error).split())}") from error
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}


def _download(repository: str, revision: str | None, hub: Mapping[str, Any]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    def fetch(**changes: Any) -> Path:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_DOWNLOADED, **{**hub, **changes}))

    try:
        return fetch()
    except Exception as error:  # the client's, those of its transport, which differ from version to version, and others
        if not isinstance(error, HfHubHTTPError):
            # Without a network some versions ask for a list of files even where the commit is in the cache.
            with suppress(Exception):
                return fetch(local_files_only=True)
        reason = " ".join(str(error).split())[:400]
        wanted = repository if revision is None else f"{repository} at revision {revision}"
        raise ModelError(f"{wanted} is no local folder and cannot be had from the hub: {reason}") from error
