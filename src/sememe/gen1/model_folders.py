"""A Gen-1 model on disk: `model_index.json`, and a folder for each component, as diffusers lays them out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sememe.checkpoints.components import find_class, load_component
from sememe.checkpoints.headers import read_json
from sememe.checkpoints.saving import INDEX_NAME
from sememe.errors import InputError, ModelError
from sememe.gen1.network_unet import Gen1UNet

COMPONENTS = (
    "vae",
    "unet",
    "scheduler",
    "tokenizer",
    "text_encoder",
    "prior",
    "prior_scheduler",
    "image_encoder",
    "image_processor",
    "depth_estimator",
    "depth_processor",
    "controlnet",
)
_SETTINGS = ("generation_defaults", "content_space")


def load_components(
    folder: Path, torch_dtype: torch.dtype | None, given: Mapping[str, Any], class_name: str
) -> dict[str, Any]:
    """Load what `model_index.json` names, except what is given, and the settings of the pipeline.

    Args:
        folder: Folder of the model.
        torch_dtype: Precision of networks; None for float32.
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
    found = index.get("_class_name")
    if found != class_name:
        raise ModelError(
            f"expected a {class_name} in {folder}, its {INDEX_NAME} names {found}; a Gen-1 model on public weights is "
            "put together by sememe.gen1.public_weights"
        )
    parts = dict(given)
    for name in COMPONENTS:
        if name not in given:
            parts[name] = _load(folder, name, index.get(name), torch_dtype)
    return parts | {name: index.get(name) for name in _SETTINGS}


def _load(folder: Path, name: str, entry: Any, torch_dtype: torch.dtype | None) -> Any:
    if entry is None or entry == [None, None]:
        return None
    own = [Gen1UNet.__module__.split(".")[0], Gen1UNet.__name__]
    component = Gen1UNet if name == "unet" and entry == own else find_class(name, folder / name, entry)
    return load_component(name, folder / name, torch_dtype, component)
