"""Released transformer folders, where the expert is merged with its backbone: read into our class, and written.

Such a folder holds the configuration of the official class (its name, the stock arguments, and those of the expert)
and safetensors in which an expert's tensor has the name of its twin with a suffix. The released models are two-way:
target and reference read each other.
"""

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from sememe.checkpoints.headers import CONFIG_NAME, STEMS, read_json, read_stored_tensors
from sememe.checkpoints.tensor_files import check_tensors, iterate_stored, write_tensors
from sememe.errors import ModelError
from sememe.records import to_plain
from sememe.video_as_prompt.formats import (
    FORMATS,
    StoredTransformer,
    TransformerFormat,
    build_on_meta,
    format_of_config,
    format_of_model,
)

BLOCKS_SETTING = "block_idx_with_mot_ref"
# Settings of the official classes that no released model uses and that are not supported here.
_UNSUPPORTED = {
    "attention_head_dim_mot_ref": "an expert whose heads have a size of their own",
    "reference_train_mode": "an expert with an output of its own for the reference",
    "supported_effect_types": "learned embeddings of named effects",
    "num_ref_embeddings": "learned embeddings of the references' places",
    "ablation_single_encoder": "an ablation of the official training",
    "ablation_residual_addition": "an ablation of the official training",
}
_ONLY_COGVIDEOX = ("ablation_single_encoder", "ablation_residual_addition")

logger = logging.getLogger(__name__)


def open_merged(folder: str | Path, stems: tuple[str, ...] = STEMS) -> StoredTransformer:
    """Check a released transformer folder without loading it.

    Args:
        folder: Folder of `config.json` and safetensors, in shards with an index or one file.
        stems: Names of the files of weights, without `.safetensors`.

    Raises:
        ModelError: It is no such folder, is not whole, asks for what is not supported here, or its tensors (by their
            official names) are not those of its configuration.
    """
    folder = Path(folder)
    path = folder / CONFIG_NAME
    config = read_json(path)
    known = format_of_config(config)
    if known is None or config.get("_class_name") not in (None, known.official_class):
        names = " or ".join(each.official_class for each in FORMATS)
        came = config.get("_class_name", "no class that is known")
        raise ModelError(f"expected a {names} in {folder}, its {CONFIG_NAME} names {came}; give a released folder")
    settings = _read_settings(path, config, known)
    stored = read_stored_tensors(folder, stems)
    skeleton = build_on_meta(known.transformer, settings, path)
    expected = {known.name_officially(key): tensor.shape for key, tensor in skeleton.state_dict().items()}
    check_tensors(folder, expected, stored)
    return StoredTransformer(known, settings, skeleton, {known.name_our_way(key): stored[key] for key in stored})


def load_merged(folder: str | Path, torch_dtype: torch.dtype | None = None, stems: tuple[str, ...] = STEMS) -> Any:
    """Load a released transformer folder, tensor by tensor, so that there is never more than one copy of the model.

    Args:
        folder: As in `open_merged`.
        torch_dtype: Precision of the weights; what diffusers keeps in float32 stays so, in the expert as well. None
            for the precision in which each tensor is stored.
        stems: As in `open_merged`.

    Returns:
        A `WanVideoAsPromptTransformer` or `CogVideoXVideoAsPromptTransformer`, two-way, in evaluation mode.

    Raises:
        ModelError: As `open_merged`.
    """
    stored = open_merged(folder, stems)
    known = stored.format
    with init_empty_weights(include_buffers=False):
        model = known.transformer(**stored.settings)
    kept = set(model._keep_in_fp32_modules or ()) if torch_dtype is not None else set()
    for key, tensor in iterate_stored(stored.tensors):
        twin = known.keys.to_backbone_key(key) if known.keys.is_expert_key(key) else key
        dtype = torch.float32 if kept & set(twin.split(".")) else torch_dtype
        # A copy: tensors inside a mapped file are not aligned, and another alignment rounds otherwise.
        _put(model, key, tensor.to(dtype if dtype and tensor.is_floating_point() else tensor.dtype, copy=True))
    return model.eval()


def save_merged(model: Any, folder: str | Path, max_shard_size: int | str = "5GB") -> None:
    """Write one of our transformers as a released folder: backbone and expert in one, under the official names.

    Raises:
        ModelError: The model is none of ours, or has a setting that such a folder cannot state.
        OutputError: The folder cannot be written.
    """
    known = format_of_model(model)
    tensors = {known.name_officially(key): tensor for key, tensor in model.state_dict().items()}
    write_tensors(Path(folder), tensors, official_config(model), max_shard_size)


def write_merged(
    stored: StoredTransformer, folder: str | Path, max_shard_size: int | str, on_tensor: Callable[[], None]
) -> None:
    """Copy a transformer from other files to a released folder, as `save_merged` would write it.

    Raises:
        ModelError: As `save_merged`; or a file cannot be read.
        OutputError: The folder cannot be written.
    """
    tensors = {stored.format.name_officially(key): tensor for key, tensor in stored.tensors.items()}
    write_tensors(Path(folder), tensors, official_config(stored.skeleton), max_shard_size, on_tensor)


def official_config(model: Any) -> dict[str, Any]:
    """Return the configuration with which a released folder describes one of our transformers.

    Raises:
        ModelError: It has a setting that the official class does not know.
    """
    known = format_of_model(model)
    given = {name: to_plain(value) for name, value in model.config.items() if not name.startswith("_")}
    released = known.released_settings(given["expert_blocks"])
    for name, value in released.items():
        if given[name] != value:
            raise ModelError(
                f"expected a model with {name} = {value}, which is what a released folder always means, got "
                f"{given[name]}; keep the expert of this model in a folder of its own"
            )
    ablations = dict.fromkeys(_ONLY_COGVIDEOX, False) if known.name == "cogvideox" else {}
    return (
        {name: value for name, value in given.items() if name not in released}
        | dict.fromkeys(name for name in _UNSUPPORTED if name not in _ONLY_COGVIDEOX)
        | ablations
        | {"_class_name": known.official_class, BLOCKS_SETTING: given["expert_blocks"]}
    )


def _read_settings(path: Path, config: Mapping[str, Any], known: TransformerFormat) -> dict[str, Any]:
    """Return the arguments of our class, from those of the official one."""
    for name, what in _UNSUPPORTED.items():
        if config.get(name):
            raise ModelError(
                f"expected a model as the released ones are, but {path} asks for {what} ({name} = "
                f"{json.dumps(config[name])}), which is not supported"
            )
    own = known.released_settings(_find_expert_blocks(path, config, known))
    taken = inspect.signature(known.transformer.__init__).parameters.keys() - own.keys()
    settings = {name: value for name, value in config.items() if name in taken}
    ignored = {
        name: value
        for name, value in config.items()
        if name not in taken and name != BLOCKS_SETTING and not name.startswith("_") and value not in (None, False)
    }
    if ignored:
        described = ", ".join(f"{name} = {json.dumps(value)}" for name, value in ignored.items())
        logger.warning("%s has settings that are not known here and are ignored: %s", path, described)
    return settings | own


def _find_expert_blocks(path: Path, config: Mapping[str, Any], known: TransformerFormat) -> list[int]:
    blocks = config.get(BLOCKS_SETTING)
    if blocks is not None:
        if not isinstance(blocks, list) or not all(isinstance(index, int) for index in blocks):
            raise ModelError(f"expected a list of numbers of blocks as {BLOCKS_SETTING} in {path}, got {blocks!r}")
        return blocks
    if config.get("num_layers") != known.released_num_layers:
        raise ModelError(
            f"expected {BLOCKS_SETTING} (the blocks that carry an expert) in {path}; it may be absent for the released "
            f"model of {known.released_num_layers} blocks, this one has {config.get('num_layers')}; add it"
        )
    logger.warning(
        "%s does not say which blocks carry an expert (%s); taken to be those of the released model: %s",
        path,
        BLOCKS_SETTING,
        list(known.released_expert_blocks),
    )
    return list(known.released_expert_blocks)


def _put(model: nn.Module, key: str, tensor: torch.Tensor) -> None:
    """Put a tensor in its place, whatever was there."""
    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    if name in module._buffers:
        module._buffers[name] = tensor
    else:
        module._parameters[name] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
