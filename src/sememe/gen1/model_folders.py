"""A Gen-1 model on disk: `model_index.json`, and a folder for each component, as diffusers lays them out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sememe.checkpoints.components import Dtypes, check_files, find_class, load_component
from sememe.checkpoints.headers import MODEL_INDEX, read_json
from sememe.errors import ModelError
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
    """
    index = read_json(folder / MODEL_INDEX)
    found = index.get("_class_name")
    if found != class_name:
        raise ModelError(
            f"expected a {class_name} in {folder}, its {MODEL_INDEX} names {found}; a Gen-1 model on public weights is "
            "put together by sememe.gen1.public_weights"
        )
    needed = [name for name in COMPONENTS if name not in given and index.get(name) not in (None, [None, None])]
    check_files(folder, needed)
    parts: dict[str, Any] = dict.fromkeys(COMPONENTS) | dict(given)
    for name in sorted(needed, key=lambda name: name != "unet"):
        is_own = name == "unet" and index[name] == ["sememe", Gen1UNet.__name__]
        component = Gen1UNet if is_own else find_class(name, folder / name, index[name])
        parts[name] = load_component(
            name, folder / name, torch_dtype, component, device, store if name == "unet" else None
        )
    return parts | {name: index.get(name) for name in ("generation_defaults", "content_space")}
