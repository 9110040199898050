"""Folders of tensors (config.json and safetensors, in shards where large), read strictly."""

import errno
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file

from sememe.checkpoints.headers import describe_names, iterate_stored, read_stored_tensors
from sememe.errors import ModelError, OutputError
from sememe.files import describe_write_error

CONFIG_NAME = "config.json"
_STEM = "diffusion_pytorch_model"
WEIGHTS_NAME = f"{_STEM}.safetensors"
INDEX_NAME = f"{WEIGHTS_NAME}.index.json"
SHARD_PATTERN = _STEM + "{suffix}.safetensors"
_MAX_JSON = 10_000_000  # bytes; a configuration takes some thousands
# Settings by which diffusers and transformers load code: a file of the folder, a kernel of the hub, a quantizer.
_CODE_SETTINGS = frozenset(
    {"auto_map", "custom_generate", "quantization_config", "fusion_config", "kernel_config", "attn_implementation"}
    | {"_attn_implementation", "experts_implementation", "_experts_implementation"}
)


def write_tensors(
    folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], max_shard_size: int | str = "5GB"
) -> None:
    """Writes tensors and their config, with an index beside them where more than one file is needed.

    Raises:
        OutputError: where the folder cannot be written.
    """
    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=SHARD_PATTERN, max_shard_size=max_shard_size
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in [*folder.glob("*.safetensors"), folder / INDEX_NAME, folder / CONFIG_NAME]:
            stale.unlink(missing_ok=True)
        for name, keys in split.filename_to_tensors.items():
            save_file({key: tensors[key].detach().contiguous() for key in keys}, folder / name, {"format": "pt"})
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        # The config comes last: a folder without one was not finished.
        (folder / CONFIG_NAME).write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n")
    except (OSError, SafetensorError) as error:
        raise OutputError(f"the model folder {folder} cannot be written: {error}") from error


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write one safetensors file.

    Raises:
        OutputError: It cannot be written.
    """
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contents, path, {"format": "pt"})
    except SafetensorError as error:
        # The library gives the system's error as its number within the text only.
        is_full = "os error 28" in str(error) or "os error 122" in str(error)
        cause = OSError(errno.ENOSPC if is_full else 0, str(error))
        raise OutputError(describe_write_error(path, cause)) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Raises:
        ModelError: The file is absent, is not a JSON object, or has a setting that makes a library load code.
    """
    if path.exists() and not (path.is_file() and path.stat().st_size <= _MAX_JSON):  # a pipe would never end
        raise ModelError(f"expected {path} to be a file of at most {_MAX_JSON / 1e6:g} MB")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ModelError(f"a model folder with {path.name} was expected, but {path} cannot be read") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object, got {type(content).__name__}")
    chosen = sorted(_CODE_SETTINGS & _find_settings(content))
    if chosen:
        raise ModelError(f"{path} chooses code to run ({', '.join(chosen)}), which is never loaded from a model folder")
    return content


def _find_settings(content: Any) -> set[str]:
    """Return the names of all settings that have a value, those of nested objects included."""
    if isinstance(content, list):
        return set().union(*map(_find_settings, content))
    if not isinstance(content, dict):
        return set()
    return {name for name, value in content.items() if value is not None}.union(*map(_find_settings, content.values()))


def iterate_tensors(folder: Path, expected: Mapping[str, torch.Size]) -> Iterator[tuple[str, torch.Tensor]]:
    """Reads tensors one by one, after their names and shapes were compared with `expected`.

    Raises:
        ModelError: where a tensor is missing, extra or of another shape, or a file is absent or damaged.
    """
    stored = read_stored_tensors(folder, (_STEM,))
    check_tensors(folder, expected, {key: torch.Size(tensor.shape) for key, tensor in stored.items()})
    yield from iterate_stored(stored)


def check_tensors(folder: Path | str, expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> None:
    """Compares tensors by name and shape.

    Raises:
        ModelError: which names what is missing, extra or of another shape.
    """
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    reshaped = [
        f"{key} {tuple(found[key])} instead of {tuple(expected[key])}"
        for key in sorted(expected.keys() & found.keys())
        if found[key] != expected[key]
    ]
    problems = [
        f"{len(names)} {kind}: {describe_names(names)}"
        for kind, names in (("missing", missing), ("not expected", extra), ("of another shape", reshaped))
        if names
    ]
    if problems:
        raise ModelError(
            f"the tensors in {folder} do not fit its config; {'; '.join(problems)}; download or copy the folder again"
        )
