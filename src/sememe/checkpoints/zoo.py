"""The built-in models: where they are, and what their folders say of themselves.

Each lies in `weights/<name>/` beside this file, in its pipeline's own layout, with a card (`README.md`) whose front
matter holds `description`, `license` and `source`. Nothing here loads a tensor, so that listing takes no time.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sememe.errors import ModelError

WEIGHTS_FOLDER = Path(__file__).parent / "weights"

_INDEX_NAME = "model_index.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MAX_HEADER = 100_000_000  # bytes; what the safetensors library itself allows
_UNKNOWN = "not stated"


@dataclass(frozen=True)
class ModelRecord:
    """What a model's folder says of itself.

    Attributes:
        name: by which it is loaded.
        pipeline: class of its pipeline.
        description: one sentence of its card.
        license: an SPDX name, of its card.
        source: where its weights come from, of its card.
        height: pixels of what it makes by default.
        width: pixels, the same.
        num_frames: the same.
        fps: frames a second, the same.
        num_parameters: numbers in all its safetensors files.
        num_bytes: size of those files.
        folder: where it is.
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
    """The models that come with the package, sorted by name."""
    return [describe_model(WEIGHTS_FOLDER / name) for name in _names()]


def resolve_model(name: str | Path) -> Path:
    """The local folder of a model: of a built-in one by its name, or a folder that is given as it is.

    A repository of the Hugging Face hub (see `is_hub_id`) is no local folder; whoever can fetch one asks that first.

    Raises:
        ModelError: there is neither such a name nor such a folder; says what there is.
    """
    text = str(name)
    if isinstance(name, str) and text in _names():
        return WEIGHTS_FOLDER / text
    if Path(name).is_dir():
        return Path(name)
    names = _names()
    close = difflib.get_close_matches(text, names, n=1)
    advice = f"; did you mean {close[0]}?" if close else ""
    there_is = f"a built-in model ({', '.join(names)})" if names else "a built-in model (there is none)"
    raise ModelError(f"expected {there_is} or a model folder, but {text!r} is neither{advice}")


def is_hub_id(name: str | Path) -> bool:
    """Whether a name has the form `owner/name` of the Hugging Face hub, and is no local folder."""
    return isinstance(name, str) and _HUB_ID.fullmatch(name) is not None and not Path(name).is_dir()


def describe_model(folder: Path) -> ModelRecord:
    """Reads what a model's folder says of itself.

    Raises:
        ModelError: the folder holds no model.
    """
    index = _read_index(folder / _INDEX_NAME)
    made = index.get("generation_defaults") or {}
    card = _read_card(folder / "README.md")
    files = sorted(folder.rglob("*.safetensors"))
    return ModelRecord(
        name=folder.name,
        pipeline=str(index.get("_class_name")),
        description=card.get("description", _UNKNOWN),
        license=card.get("license", _UNKNOWN),
        source=card.get("source", _UNKNOWN),
        height=made.get("height"),
        width=made.get("width"),
        num_frames=made.get("num_frames"),
        fps=made.get("fps"),
        num_parameters=sum(_count_parameters(path) for path in files),
        num_bytes=sum(path.stat().st_size for path in files),
        folder=folder,
    )


def _names() -> list[str]:
    return sorted(path.parent.name for path in WEIGHTS_FOLDER.glob(f"*/{_INDEX_NAME}"))


def _read_index(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"expected a model folder with {path.name}, but {path} cannot be read") from error
    if not isinstance(content, dict):
        raise ModelError(f"expected a JSON object in {path}, got {type(content).__name__}")
    return content


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


def _count_parameters(path: Path) -> int:
    """Numbers in a safetensors file, by its header alone."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_MAX_HEADER, path.stat().st_size):
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is no safetensors file, or is damaged; copy the folder again") from error
