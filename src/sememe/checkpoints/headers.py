"""Read the JSON files and the headers of the weights in a model folder, before any tensor is loaded.

Only safetensors are weights here. What keeps a folder from being whole (an unfinished download, a missing shard, a file
cut short) is found by names, sizes and headers, and named in one line. Nothing here needs torch.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sememe.errors import ModelError

CONFIG_NAME, MODEL_INDEX = "config.json", "model_index.json"
STEMS = ("diffusion_pytorch_model", "model")
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
PICKLE_REASON = "such files are pickles, which can run code when they are read; use safetensors files of this model"

_MAX_HEADER = 10_000_000  # bytes; that of a model of 16 billion parameters takes 200 thousand
_MAX_JSON = 10_000_000  # bytes; a configuration takes some thousands
# Settings by which diffusers and transformers load code: a file of the folder, a kernel of the hub, a quantizer.
_CODE_SETTINGS = frozenset(
    {"auto_map", "custom_generate", "quantization_config", "fusion_config", "kernel_config", "attn_implementation"}
    | {"_attn_implementation", "experts_implementation", "_experts_implementation"}
)
# Of numbers in a configuration: tables are computed for so many positions or timesteps.
_MAX_NUMBER = 1_000_000
_LAYERS = re.compile(r"num_.*(layers|blocks)|(n|num)_layers?|layers_per_block")
_INTEGERS = ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL")
_UNFINISHED = ("*.incomplete", "*.part", "*.aria2", "*.crdownload")
_NUMBER = re.compile(r"\.(\d+)\.")
_MOST_NAMES = 20


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is, by the header of its file.

    Attributes:
        key: Name in that file.
        shape: Shape.
        dtype: Precision as safetensors names it, such as `BF16`.
        num_bytes: Size of its data.
        path: The file.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    path: Path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Raises:
        ModelError: The file is absent, is not a JSON object, or has a setting that makes a library load code.
    """
    if path.exists() and not (path.is_file() and path.stat().st_size <= _MAX_JSON):  # a pipe would never end
        raise ModelError(f"expected {path} to be a file of at most {_MAX_JSON / 1e6:g} MB")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_read_constant)
    except OSError as error:
        raise ModelError(f"expected a model folder with {path.name}, but {path} cannot be read") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"expected JSON in {path}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"expected a JSON object in {path}, got {type(content).__name__}")
    chosen = sorted(_CODE_SETTINGS & _find_settings(content))
    if chosen:
        raise ModelError(f"{path} chooses code to run ({', '.join(chosen)}), which is never loaded from a model folder")
    return content


def check_sizes(path: Path, config: Any, num_tensors: int | None = None) -> None:
    """Check the numbers of a configuration before anything of that size is built.

    Args:
        path: File of the configuration.
        config: What it holds.
        num_tensors: Tensors that are stored for it, of which each layer has at least one; None where there are none.

    Raises:
        ModelError: A number is far beyond those of any model, or there are more layers than tensors.
    """
    if isinstance(config, list):
        for each in config:
            check_sizes(path, each, num_tensors)
    if not isinstance(config, dict):
        return
    for name, value in config.items():
        most, what = _MAX_NUMBER, "that any model has"
        if num_tensors is not None and _LAYERS.fullmatch(name):
            most, what = num_tensors, "tensors that are there"
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > most and "theta" not in name:
                raise ModelError(f"{path} asks for {name} = {number:.3g}, more than the {most} {what}")
        check_sizes(path, value, num_tensors)


def read_stored_tensors(folder: Path, stems: Sequence[str] = STEMS) -> dict[str, StoredTensor]:
    """Return every tensor of a folder, by name.

    Raises:
        ModelError: As `list_weight_files`; or a file is damaged or not as long as its header says, or a tensor is in
            two files.
    """
    stored: dict[str, StoredTensor] = {}
    for path in list_weight_files(folder, stems):
        for tensor in read_header(path):
            if tensor.dtype in _INTEGERS and tensor.key.endswith((".weight", ".bias")):
                raise ModelError(f"expected weights of floating point, but {tensor.key} in {path} holds {tensor.dtype}")
            if tensor.key in stored:
                raise ModelError(f"{tensor.key} is both in {stored[tensor.key].path.name} and in {path}; keep one")
            stored[tensor.key] = tensor
    return stored


def list_weight_files(folder: Path, stems: Sequence[str] = STEMS) -> list[Path]:
    """Return the safetensors files of a folder: those that an index names, or the only one.

    Args:
        folder: Holds `<stem>.safetensors`, or `<stem>.safetensors.index.json` and the files that it names.
        stems: Names to look for, in this order.

    Raises:
        ModelError: There are none, one of them is missing, or there are pickles instead.
    """
    index = _find_index(folder, stems)
    if index is not None:
        return _list_shards(index)
    for stem in stems:
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
    names = " or ".join(f"{stem}.safetensors" for stem in stems)
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLED_SUFFIXES)
    if pickled:
        raise ModelError(f"expected {names} in {folder}, got {pickled[0]}; {PICKLE_REASON}")
    unfinished = _unfinished_downloads(folder)
    if unfinished:
        raise ModelError(
            f"expected {names} in {folder}, got the unfinished download {unfinished[0]}; download the folder again"
        )
    raise ModelError(
        f"expected {names} in {folder} (or an index that names its shards), it has neither; download the folder again"
    )


def list_missing_shards(folder: Path, stems: Sequence[str] = STEMS) -> list[str]:
    """Return the files that a folder's index names and that are missing; none where it has no index.

    Raises:
        ModelError: The index cannot be read, or names anything but safetensors files beside it.
    """
    index = _find_index(folder, stems)
    return [] if index is None else [name for name in _read_shard_names(index) if not (folder / name).is_file()]


def describe_names(names: Iterable[str]) -> str:
    """Return names of tensors in few words, those that differ in their first number alone as one.

    So `blocks.0.x`, `blocks.1.x` and `blocks.4.x` give `blocks.{0-1,4}.x`.
    """
    numbers: dict[str, list[int]] = {}
    for name in names:
        match = _NUMBER.search(name)
        if match:
            numbers.setdefault(f"{name[: match.start(1)]}*{name[match.end(1) :]}", []).append(int(match[1]))
        else:
            numbers.setdefault(name, [])
    shown = [
        pattern if not found else pattern.replace("*", _describe_numbers(sorted(found)), 1)
        for pattern, found in sorted(numbers.items())
    ]
    more = len(shown) - _MOST_NAMES
    return ", ".join(shown[:_MOST_NAMES]) + (f" and {more} more like these" if more > 0 else "")


def _read_constant(name: str) -> float:
    """Return an infinity, which schedulers have among their settings."""
    if name == "NaN":
        raise ValueError("NaN is no setting")
    return float(name)


def _find_settings(content: Any) -> set[str]:
    """Return the names of all settings that have a value, those of nested objects included."""
    if isinstance(content, list):
        return set().union(*map(_find_settings, content))
    if not isinstance(content, dict):
        return set()
    return {name for name, value in content.items() if value is not None}.union(*map(_find_settings, content.values()))


def _describe_numbers(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "}"


def _find_index(folder: Path, stems: Sequence[str]) -> Path | None:
    paths = (folder / f"{stem}.safetensors.index.json" for stem in stems)
    return next((path for path in paths if path.is_file()), None)


def _list_shards(index: Path) -> list[Path]:
    names = _read_shard_names(index)
    missing = list_missing_shards(index.parent, [index.name.removesuffix(".safetensors.index.json")])
    if missing:
        unfinished = _unfinished_downloads(index.parent)
        beside = f" (there is the unfinished download {unfinished[0]})" if unfinished else ""
        raise ModelError(
            f"expected the {len(names)} files that {index} names, {len(missing)} of them missing: "
            f"{', '.join(missing)}{beside}; download them again"
        )
    return [index.parent / name for name in names]


def _read_shard_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    # An index must not lead out of its folder.
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise ModelError(f"{index} must map tensors to files beside it")
    pickled = sorted(name for name in set(names) if Path(name).suffix in PICKLED_SUFFIXES)
    if pickled:
        raise ModelError(f"expected safetensors files, but {index} names {pickled[0]}; {PICKLE_REASON}")
    return sorted(set(names))


def _unfinished_downloads(folder: Path) -> list[str]:
    """Return unfinished downloads, in the folder or where the hub's client keeps those of a local folder."""
    places = [folder, folder / ".cache/huggingface/download"]
    places.append(folder.parent / ".cache/huggingface/download" / folder.name)
    return sorted(path.name for place in places for pattern in _UNFINISHED for path in place.glob(pattern))


def read_header(path: Path) -> list[StoredTensor]:
    """Return the tensors of one safetensors file.

    Raises:
        ModelError: It is none, is damaged, or is not as long as its header says.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            beginning = file.read(8)
            if beginning == b"version ":
                raise ModelError(
                    f"expected a safetensors file, but {path} is a pointer of git-lfs; fetch it with `git lfs pull`"
                )
            length = int.from_bytes(beginning, "little")
            if len(beginning) < 8 or length > min(_MAX_HEADER, size - 8):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        tensors = [_parse_entry(path, key, entry) for key, entry in header.items() if key != "__metadata__"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} is no safetensors file, or is damaged or cut short; download it again") from error
    expected = 8 + length + sum(tensor.num_bytes for tensor in tensors)
    if size != expected:
        state = "cut short" if size < expected else "too long"
        raise ModelError(f"{path} is {state}: expected {expected} bytes, got {size}; download it again")
    return tensors


def _parse_entry(path: Path, key: str, entry: Mapping[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    if math.prod(shape) and end <= begin:
        raise ValueError("a tensor without data")
    return StoredTensor(key, shape, str(entry["dtype"]), int(end) - int(begin), path)
