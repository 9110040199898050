"""A Video-As-Prompt model on disk: a stock diffusers folder with the expert in a folder of its own.

model_index.json
transformer/     the frozen backbone, as diffusers writes a WanTransformer3DModel
expert/          the expert's tensors alone
vae/ text_encoder/ tokenizer/ scheduler/, and image_encoder/ image_processor/ for backbones that read CLIP
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from sememe.errors import ModelError
from sememe.files import write_text
from sememe.models.component_files import load_strictly
from sememe.models.tensor_files import read_json
from sememe.models.wan import WanVideoAsPromptTransformer

INDEX_NAME = "model_index.json"
EXPERT_FOLDER = "expert"
# Only these classes are ever loaded, whatever a model_index.json names.
ALLOWED_CLASSES: Mapping[str, Mapping[str, frozenset[str]]] = {
    "transformer": {"diffusers": frozenset({"WanTransformer3DModel"})},
    "vae": {"diffusers": frozenset({"AutoencoderKLWan", "AutoencoderKLCosmos"})},
    "scheduler": {
        "diffusers": frozenset(
            {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "UniPCMultistepScheduler"}
            | {"DPMSolverMultistepScheduler"}
        )
    },
    "text_encoder": {"transformers": frozenset({"UMT5EncoderModel", "T5EncoderModel"})},
    "tokenizer": {
        "transformers": frozenset(
            {"T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "AutoTokenizer"}
        )
    },
    "image_encoder": {"transformers": frozenset({"CLIPVisionModel", "CLIPVisionModelWithProjection"})},
    "image_processor": {
        "transformers": frozenset({"CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"})
    },
}
_OPTIONAL = frozenset({"image_encoder", "image_processor"})
# Their errors of a few per cent are visible, and they are small: these stay in float32.
_FULL_PRECISION = frozenset({"vae", "image_encoder"})


def find_folder(name: str | Path) -> Path:
    """The local folder of a model: a folder itself, a name of the zoo, or a repository on the Hugging Face hub.

    Raises:
        ModelError: where there is no such model.
    """
    if Path(name).is_dir():
        return Path(name)
    text = str(name)
    if "/" not in text and "\\" not in text and not isinstance(name, Path):
        from sememe.zoo import resolve_model

        return resolve_model(text)
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise ModelError(f"expected a model folder, but {name} is not a folder")
    return _download(text)


def load_components(
    folder: Path, torch_dtype: torch.dtype | None, given: Mapping[str, Any], class_name: str
) -> dict[str, Any]:
    """Loads what `model_index.json` names, except what is given; and the generation defaults.

    Raises:
        ModelError: where the folder is not a model of this kind, or not whole.
    """
    index = read_json(folder / INDEX_NAME)
    if index.get("_class_name") != class_name:
        raise ModelError(f"{folder} was expected to hold a {class_name}, it holds a {index.get('_class_name')}")
    parts: dict[str, Any] = {"generation_defaults": index.get("generation_defaults")}
    for name in ALLOWED_CLASSES:
        parts[name] = given[name] if name in given else _load_component(folder, name, index.get(name), torch_dtype)
    return parts


def save_components(
    folder: Path,
    components: Mapping[str, Any],
    generation_defaults: Mapping[str, Any] | None,
    class_name: str,
    max_shard_size: int | str | None,
) -> None:
    """Writes every component to its folder, the expert to its own, and `model_index.json` at the end.

    Raises:
        OutputError: where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    index: dict[str, Any] = {
        "_class_name": class_name,
        "_diffusers_version": diffusers.__version__,
        "generation_defaults": generation_defaults,
        EXPERT_FOLDER: ["sememe", "WanVideoAsPromptExpert"],
    }
    for name, component in components.items():
        if component is None:
            index[name] = [None, None]
        elif name == "transformer":
            component.save_backbone(folder / name, **size)
            component.save_expert(folder / EXPERT_FOLDER, **size)
            index[name] = ["diffusers", "WanTransformer3DModel"]
        else:
            component.save_pretrained(folder / name, **(size if isinstance(component, torch.nn.Module) else {}))
            index[name] = [type(component).__module__.split(".")[0], type(component).__name__]
    write_text(folder / INDEX_NAME, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _load_component(folder: Path, name: str, entry: Any, torch_dtype: torch.dtype | None) -> Any:
    if name in _OPTIONAL and (not entry or entry[0] is None):
        return None
    if not isinstance(entry, list) or len(entry) != 2:
        raise ModelError(f"{folder / INDEX_NAME} must name the library and class of {name}, it says {entry}")
    library, class_name = entry
    if class_name not in ALLOWED_CLASSES[name].get(library, frozenset()):
        allowed = [f"{key}.{value}" for key, values in ALLOWED_CLASSES[name].items() for value in sorted(values)]
        raise ModelError(f"{name} of {folder} is a {library}.{class_name}; expected one of {', '.join(allowed)}")
    if name == "transformer":
        return WanVideoAsPromptTransformer.from_folders(folder / name, folder / EXPERT_FOLDER, torch_dtype)
    component = getattr(importlib.import_module(library), class_name)
    if hasattr(component, "forward"):
        dtype = None if name in _FULL_PRECISION else torch_dtype
        return load_strictly(component, folder / name, **{_dtype_argument(library): dtype or torch.float32})
    try:
        return component.from_pretrained(folder / name, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"the {name} in {folder / name} cannot be loaded: {reason}") from error


def _dtype_argument(library: str) -> str:
    return "dtype" if library == "transformers" else "torch_dtype"


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model"]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{repository} is no local folder and cannot be had from the hub: {reason}") from error
