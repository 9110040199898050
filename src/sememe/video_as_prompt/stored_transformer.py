"""A transformer with its expert in files, looked at but not loaded, and copied tensor by tensor to another layout.

The two layouts are a released folder, where both are merged, and a stock folder of the backbone with a folder of the
expert beside it. Both hold the same tensors, so that one becomes the other without a model in memory.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file

from sememe.checkpoints.headers import StoredTensor, iterate_stored
from sememe.checkpoints.tensor_files import CONFIG_NAME, INDEX_NAME, SHARD_PATTERN
from sememe.errors import ModelError, OutputError
from sememe.files import describe_write_error
from sememe.video_as_prompt.formats import TransformerFormat


@dataclass(frozen=True)
class StoredTransformer:
    """A transformer in files; all its tensors are there and fit its settings.

    Attributes:
        format: of the transformer.
        settings: arguments of our class.
        skeleton: our class, on the meta device.
        tensors: where each tensor lies, by our name of it.
    """

    format: TransformerFormat
    settings: Mapping[str, Any]
    skeleton: Any
    tensors: Mapping[str, StoredTensor]


def build_on_meta(transformer: Any, settings: Mapping[str, Any], path: Path) -> Any:
    """One of our transformers without any memory for its tensors.

    Raises:
        ModelError: the settings, which came from the file `path`, make none.
    """
    try:
        with torch.device("meta"):
            return transformer(**settings)
    except ModelError as error:
        raise ModelError(f"{path} does not describe a whole model: {error}") from error
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path} does not describe a {transformer.__name__}: {reason}") from error


def copy_tensors(
    tensors: Mapping[str, StoredTensor],
    folder: Path,
    config: Mapping[str, Any],
    max_shard_size: int | str,
    on_tensor: Callable[[], None],
) -> None:
    """Writes tensors from other files to a new folder, bit for bit, with no more than one shard in memory.

    Args:
        tensors: where each lies, by its name in the new folder.
        folder: is made, and must be empty.
        config: becomes its `config.json`.
        max_shard_size: of each file, such as "5GB".
        on_tensor: called after each tensor was read.

    Raises:
        ModelError: a file cannot be read.
        OutputError: the folder cannot be written.
    """
    # Stand-ins of the same size in bytes; on the meta device they take no memory.
    sizes = {key: torch.empty(stored.num_bytes, dtype=torch.uint8, device="meta") for key, stored in tensors.items()}
    split = split_torch_state_dict_into_shards(sizes, filename_pattern=SHARD_PATTERN, max_shard_size=max_shard_size)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, keys in split.filename_to_tensors.items():
            shard = {}
            for key, tensor in iterate_stored({key: tensors[key] for key in keys}):
                shard[key] = tensor
                on_tensor()
            _save(shard, folder / name)
        if split.is_sharded:
            metadata = {"total_size": sum(stored.num_bytes for stored in tensors.values())}
            index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
            (folder / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        (folder / CONFIG_NAME).write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n")
    except ModelError:
        raise
    except OSError as error:
        raise OutputError(describe_write_error(folder, error)) from error


def to_plain(value: Any) -> Any:
    """A setting as JSON has it."""
    return list(value) if isinstance(value, (list, tuple)) else value


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, {"format": "pt"})
    except SafetensorError as error:
        # The library tells the system's error by its number within the text alone.
        if "os error 28" in str(error) or "os error 122" in str(error):
            raise OutputError(
                f"cannot write {path}: the disk is full; free some space or choose another folder"
            ) from error
        raise OutputError(f"cannot write {path}: {error}; choose another folder") from error
