"""Folders of tensors (`config.json` and safetensors, in shards where large): read strictly, and written."""

import errno
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from sememe.checkpoints.headers import CONFIG_NAME, StoredTensor, describe_names, read_stored_tensors
from sememe.errors import ModelError
from sememe.files import writing

_STEM = "diffusion_pytorch_model"
WEIGHTS_NAME = f"{_STEM}.safetensors"
INDEX_NAME = f"{WEIGHTS_NAME}.index.json"
_ALIGNMENT = 64  # bytes, that of tensors which torch makes itself
SHARD_PATTERN = _STEM + "{suffix}.safetensors"


def write_tensors(
    folder: Path,
    tensors: Mapping[str, torch.Tensor] | Mapping[str, StoredTensor],
    config: Mapping[str, Any],
    max_shard_size: int | str = "5GB",
    on_tensor: Callable[[], None] = lambda: None,
) -> None:
    """Write a folder of tensors and their config, with an index where more than one file is needed.

    Args:
        folder: Made where it is not there; tensors and config of an older model in it are removed.
        tensors: By name in the new folder. Those in other files are copied bit for bit, with no more than one shard of
            them in memory.
        config: Becomes its `config.json`.
        max_shard_size: Size of each file, such as "5GB".
        on_tensor: Called after each tensor that was read from another file.

    Raises:
        ModelError: A file of stored tensors cannot be read.
        OutputError: The folder cannot be written.
    """
    # Of the same size in bytes; on the meta device they take no memory.
    num_bytes = {
        key: each.num_bytes if isinstance(each, StoredTensor) else each.nbytes for key, each in tensors.items()
    }
    sizes = {key: torch.empty(size, dtype=torch.uint8, device="meta") for key, size in num_bytes.items()}
    split = split_torch_state_dict_into_shards(sizes, filename_pattern=SHARD_PATTERN, max_shard_size=max_shard_size)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for stale in [*folder.glob("*.safetensors"), folder / INDEX_NAME, folder / CONFIG_NAME]:
            stale.unlink(missing_ok=True)
        for name, keys in split.filename_to_tensors.items():
            shard = {key: each for key in keys if isinstance(each := tensors[key], torch.Tensor)}
            stored = {key: each for key in keys if isinstance(each := tensors[key], StoredTensor)}
            for key, tensor in iterate_stored(stored):
                shard[key] = tensor
                on_tensor()
            save_tensors(shard, folder / name)
        if split.is_sharded:
            metadata = {"total_size": sum(num_bytes.values())}
            index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
            (folder / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        # The config comes last: a folder without one was not finished.
        (folder / CONFIG_NAME).write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n")


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file, with texts besides the tensors in its header.

    Raises:
        OutputError: It cannot be written.
    """
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with writing(path):
        try:
            save_file(contents, path, {"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            # The library gives the system's error as its number within the text only.
            is_full = "os error 28" in str(error) or "os error 122" in str(error)
            raise OSError(errno.ENOSPC if is_full else 0, str(error)) from error


def iterate_stored(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Read tensors one by one, file after file, and yield each with its key in `tensors`.

    Raises:
        ModelError: A file cannot be read.
    """
    by_path: dict[Path, list[tuple[str, StoredTensor]]] = {}
    for key, stored in tensors.items():
        by_path.setdefault(stored.path, []).append((key, stored))
    for path, entries in by_path.items():
        try:
            with safe_open(path, "pt") as file:
                for key, stored in entries:
                    yield key, file.get_tensor(stored.key)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be read ({error}); copy the folder again") from error


def iterate_tensors(folder: Path, expected: Mapping[str, torch.Size]) -> Iterator[tuple[str, torch.Tensor]]:
    """Read tensors one by one, after their names and shapes were compared with `expected`.

    Raises:
        ModelError: A tensor is missing, extra or of another shape, or a file is absent or damaged.
    """
    stored = read_stored_tensors(folder, (_STEM,))
    check_tensors(folder, expected, stored)
    yield from iterate_stored(stored)


def align_weights(module: nn.Module) -> None:
    """Copy weights that lie where a mapped file has them: with another alignment products round otherwise."""
    for parameter in module.parameters():
        if (
            type(parameter.data) is torch.Tensor
            and parameter.device.type == "cpu"
            and parameter.data_ptr() % _ALIGNMENT
        ):
            parameter.data = parameter.data.clone()


def set_tensor(model: nn.Module, key: str, tensor: torch.Tensor) -> None:
    """Put a tensor in its place in a model; whether it is trained stays as it was."""
    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    if name in module._buffers:
        module._buffers[name] = tensor
    else:
        before = module._parameters[name]
        is_trained = tensor.is_floating_point() and (before is None or before.requires_grad)
        module._parameters[name] = nn.Parameter(tensor, requires_grad=is_trained)


def leave_out(stored: Mapping[str, StoredTensor], model: nn.Module) -> dict[str, StoredTensor]:
    """Return the tensors but for those that the model's class ignores when it is loaded, as diffusers does."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return {key: each for key, each in stored.items() if not any(re.search(pattern, key) for pattern in patterns)}


def check_tensors(folder: Path, expected: Mapping[str, torch.Size], stored: Mapping[str, StoredTensor]) -> None:
    """Compare tensors by name and shape.

    Raises:
        ModelError: Some are missing, extra or of another shape; the message names them.
    """
    found = {key: torch.Size(tensor.shape) for key, tensor in stored.items()}
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
