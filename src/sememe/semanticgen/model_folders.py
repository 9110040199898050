"""A SemanticGen model on disk.

model_index.json
transformer/       the renderer, a `SemanticGenTransformer`
planner/           another one, without semantic tokens
compressor/        `SemanticCompressor`, with the frames per second of the encoder
semantic_encoder/  a tower of transformers, with the colours that it was trained with
vae/ text_encoder/ tokenizer/ scheduler/
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sememe.checkpoints import saving
from sememe.checkpoints.components import find_class, load_component, load_strictly
from sememe.checkpoints.headers import list_missing_shards, read_json
from sememe.checkpoints.saving import INDEX_NAME
from sememe.checkpoints.zoo import config_name
from sememe.errors import InputError, ModelError
from sememe.files import write_text
from sememe.semanticgen.compressor import SemanticCompressor
from sememe.semanticgen.encoders import Colours, load_encoder
from sememe.semanticgen.network_renderer import SemanticGenTransformer

COMPONENTS = (
    "tokenizer",
    "text_encoder",
    "semantic_encoder",
    "compressor",
    "planner",
    "transformer",
    "vae",
    "scheduler",
)
_OWN_CLASSES: Mapping[str, type] = {
    "transformer": SemanticGenTransformer,
    "planner": SemanticGenTransformer,
    "compressor": SemanticCompressor,
}


def load_components(
    folder: Path, torch_dtype: torch.dtype | None, given: Mapping[str, Any], class_name: str
) -> dict[str, Any]:
    """Load what `model_index.json` names, except what is given, and the arguments of the pipeline.

    Args:
        folder: Folder of the model.
        torch_dtype: Precision of transformer, planner and text encoder; None for float32, which all else has.
        given: Components that are not to be loaded.
        class_name: Class of the pipeline.

    Raises:
        ModelError: The folder is not a model of this kind, or is not whole.
        InputError: What is given is no component.
    """
    unknown = sorted(given.keys() - set(COMPONENTS))
    if unknown:
        raise InputError(f"expected components of the pipeline ({', '.join(COMPONENTS)}), got {', '.join(unknown)}")
    index = read_json(folder / INDEX_NAME)
    if index.get("_class_name") != class_name:
        raise ModelError(f"expected a {class_name} in {folder}, its {INDEX_NAME} names {index.get('_class_name')}")
    missing = [
        f"{name}/{file}"
        for name in COMPONENTS
        if name not in given
        for file in (config_name(name), *list_missing_shards(folder / name))
        if not (folder / name / file).is_file()
    ]
    if missing:
        raise ModelError(f"expected a whole model in {folder}, but these files are missing: {', '.join(missing)}")
    parts: dict[str, Any] = {name: given.get(name) for name in COMPONENTS}
    for name in COMPONENTS:
        if name not in given and name != "semantic_encoder":
            parts[name] = _load(folder, name, index.get(name), torch_dtype)
    colours = None
    if "semantic_encoder" not in given:
        encoder = load_encoder(folder / "semantic_encoder", parts["compressor"].config.fps)
        parts["semantic_encoder"], colours = encoder.tower, encoder.colours
    return parts | {"generation_defaults": index.get("generation_defaults"), "encoder_colours": colours}


def _load(folder: Path, name: str, entry: Any, torch_dtype: torch.dtype | None) -> Any:
    own = _OWN_CLASSES.get(name)
    if own is None:
        component = None if name == "tokenizer" else find_class(name, folder / name, entry)
        return load_component(name, folder / name, torch_dtype, component)
    found = read_json(folder / name / config_name(name)).get("_class_name")
    if found != own.__name__:
        raise ModelError(f"expected a {own.__name__} as the {name} in {folder}, got {found}")
    dtype = torch.float32 if torch_dtype is None or name == "compressor" else torch_dtype
    return load_strictly(own, folder / name, dtype)


def save_components(
    folder: Path,
    components: Mapping[str, Any],
    settings: Mapping[str, Any],
    class_name: str,
    colours: tuple[Colours, Colours],
    max_shard_size: int | str | None = None,
) -> None:
    """Write a folder for `load_components`.

    Raises:
        OutputError: The folder cannot be written.
    """
    saving.save_components(folder, components, settings, class_name, max_shard_size)
    mean, std = colours
    processor = json.dumps({"image_mean": mean, "image_std": std}, indent=2) + "\n"
    write_text(folder / "semantic_encoder" / "preprocessor_config.json", processor)
