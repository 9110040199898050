"""A SemanticGen model on disk.

model_index.json
transformer/       the renderer, a `SemanticGenTransformer`
planner/           another one, without semantic tokens
compressor/        `SemanticCompressor`, with the frames per second of the encoder
semantic_encoder/  a tower of transformers, with the colours that it was trained with
vae/ text_encoder/ tokenizer/ scheduler/
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sememe.checkpoints import saving
from sememe.checkpoints.components import Dtypes, check_files, find_class, load_component
from sememe.checkpoints.headers import MODEL_INDEX, read_json
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
_EXACT = frozenset({"semantic_encoder", "compressor"})


def load_components(
    folder: Path,
    torch_dtype: Dtypes | None,
    given: Mapping[str, Any],
    class_name: str,
    device: torch.device | None = None,
    store: Callable[[Any], None] | None = None,
) -> dict[str, Any]:
    """Load what `model_index.json` names, and the settings of the pipeline; see `SystemPipeline.load_components`.

    Raises:
        ModelError: The folder is not a model of this kind, or is not whole.
        InputError: A precision is asked for components that have but one.
    """
    index = read_json(folder / MODEL_INDEX)
    if index.get("_class_name") != class_name:
        raise ModelError(f"expected a {class_name} in {folder}, its {MODEL_INDEX} names {index.get('_class_name')}")
    if isinstance(torch_dtype, Mapping) and torch_dtype.keys() & _EXACT:
        named = ", ".join(sorted(torch_dtype.keys() & _EXACT))
        raise InputError(f"plans name {named} by fingerprints of float32; leave the torch_dtype out")
    needed = [name for name in COMPONENTS if name not in given]
    check_files(folder, needed)
    parts = dict(given)
    for name in sorted(needed, key=lambda name: name != "transformer"):
        if name != "semantic_encoder":
            dtype = None if name in _EXACT else torch_dtype
            component = _find_class(folder, name, index.get(name))
            parts[name] = load_component(
                name, folder / name, dtype, component, device, store if name == "transformer" else None
            )
    colours = None
    if "semantic_encoder" in needed:
        encoder = load_encoder(folder / "semantic_encoder", parts["compressor"].config.fps, device=device)
        parts["semantic_encoder"] = encoder.tower
        colours = encoder.colours
    return parts | {"generation_defaults": index.get("generation_defaults"), "encoder_colours": colours}


def _find_class(folder: Path, name: str, entry: Any) -> Any:
    own = _OWN_CLASSES.get(name)
    if own is None:
        return None if name == "tokenizer" else find_class(name, folder / name, entry)
    found = read_json(folder / name / config_name(name)).get("_class_name")
    if found != own.__name__:
        raise ModelError(f"expected a {own.__name__} as the {name} in {folder}, got {found}")
    return own


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
