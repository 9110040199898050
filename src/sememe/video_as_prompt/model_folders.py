"""A Video-As-Prompt model on disk: a stock diffusers folder with the expert in a folder of its own.

model_index.json
transformer/     the frozen backbone, as diffusers writes it
expert/          the expert's tensors alone
vae/ text_encoder/ tokenizer/ scheduler/, and image_encoder/ image_processor/ for backbones that read CLIP

The released models lie otherwise, and a stock folder lacks the expert; both are read too (see `layouts`).
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from sememe.checkpoints.component_files import load_strictly, load_tokenizer, load_without_weights
from sememe.checkpoints.headers import PICKLE_REASON, PICKLED_SUFFIXES
from sememe.checkpoints.zoo import is_hub_id, resolve_model
from sememe.errors import ModelError
from sememe.files import write_text
from sememe.video_as_prompt.formats import format_of_model
from sememe.video_as_prompt.layouts import EXPERT_FOLDER, INDEX_NAME, ModelLayout, check_whole, read_layout
from sememe.video_as_prompt.merged_files import load_merged
from sememe.video_as_prompt.released_defaults import released_defaults
from sememe.video_as_prompt.separate_files import check_pair

# Only these classes are ever loaded, whatever a model_index.json names; those of transformers see `layouts`.
ALLOWED_CLASSES: Mapping[str, Mapping[str, frozenset[str]]] = {
    "vae": {
        "diffusers": frozenset({"AutoencoderKLWan", "AutoencoderKLCogVideoX"}),
        "sememe": frozenset({"LinearVideoAutoencoder"}),
    },
    "scheduler": {
        "diffusers": frozenset(
            {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "UniPCMultistepScheduler"}
            | {"DPMSolverMultistepScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"}
        )
    },
    "text_encoder": {"transformers": frozenset({"UMT5EncoderModel", "T5EncoderModel"})},
    "tokenizer": {
        "transformers": frozenset({"T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"})
    },
    "image_encoder": {"transformers": frozenset({"CLIPVisionModel", "CLIPVisionModelWithProjection"})},
    "image_processor": {
        "transformers": frozenset({"CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"})
    },
}
# This name now stands for another resizing where torchvision is installed; released models mean that of PIL.
_READ_AS = {"CLIPImageProcessor": "CLIPImageProcessorPil"}
# Their errors of a few per cent are visible, and they are small: these stay in float32.
_FULL_PRECISION = frozenset({"vae", "image_encoder"})
_DOWNLOADED = ["model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model"]


def find_folder(name: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model: a folder itself, a name of the zoo, or a repository on the Hugging Face hub.

    Args:
        name: of the model.
        revision: a branch, tag or commit of a repository on the hub; None for its newest.

    Raises:
        ModelError: there is no such model, or a revision is asked of one that is no repository.
    """
    if is_hub_id(name):
        return _download(str(name), revision)
    if revision is not None:
        raise ModelError(f"expected a repository of the hub (owner/name) to go with revision {revision}, got {name}")
    if Path(name).is_dir():
        return resolve_model(name)  # a built-in model goes before a folder of its name, everywhere
    if Path(name).is_file():
        reason = PICKLE_REASON if Path(name).suffix in PICKLED_SUFFIXES else "give the folder of a whole model"
        raise ModelError(f"expected a model folder, got the file {name}; {reason}")
    if isinstance(name, Path) or "/" in name or "\\" in name:
        raise ModelError(f"expected a model folder, but {name} is not a folder")
    return resolve_model(name)


def find_expert(name: str | Path) -> Path:
    """The folder of an expert alone: that folder, or that of a model which has one.

    Raises:
        ModelError: there is none.
    """
    folder = find_folder(name)
    if (folder / "config.json").is_file():
        return folder
    if (folder / EXPERT_FOLDER / "config.json").is_file():
        return folder / EXPERT_FOLDER
    raise ModelError(
        f"expected an expert in {folder} (config.json and safetensors, or a folder {EXPERT_FOLDER}/ of it)"
    )


def load_components(
    folder: Path,
    torch_dtype: torch.dtype | None,
    given: Mapping[str, Any],
    class_name: str,
    expert: str | Path | None = None,
) -> dict[str, Any]:
    """Loads what `model_index.json` names, except what is given; and the settings of the pipeline.

    Args:
        folder: a model in one of the layouts.
        torch_dtype: precision of the transformer and the text encoder; None for float32.
        given: components that are not to be loaded.
        class_name: of the pipeline that asks.
        expert: folder of an expert, for a stock model, or instead of the model's own.

    Raises:
        ModelError: the folder is not a model of this kind, is not whole, or lacks an expert.
    """
    layout = read_layout(folder)
    source = None
    if "transformer" not in given:
        source = choose_expert(layout, class_name, expert)
    elif expert is not None:
        raise ModelError(f"expected an expert or a transformer that has one, got both: {expert} and the transformer")
    check_whole(layout, given.keys(), needs_expert=source == folder / EXPERT_FOLDER)
    parts = dict(given)
    for name in ALLOWED_CLASSES:
        if name not in given:
            parts[name] = _load_component(layout, name, torch_dtype)
    if "transformer" not in given:
        parts["transformer"] = _load_transformer(layout, source, torch_dtype)
    defaults = layout.index.get("generation_defaults")
    if defaults is None:
        name = f"{layout.format.name}-ti2v" if layout.has_token_timesteps else layout.format.name
        defaults = released_defaults(name, parts["transformer"], parts["vae"])
    settings = {"generation_defaults": defaults, "expand_timesteps": layout.has_token_timesteps}
    return {name: parts[name] for name in ("transformer", *ALLOWED_CLASSES)} | settings


def save_components(
    folder: Path,
    components: Mapping[str, Any],
    settings: Mapping[str, Any],
    class_name: str,
    max_shard_size: int | str | None,
) -> None:
    """Writes every component to its folder, the expert to its own, and `model_index.json` at the end.

    Raises:
        OutputError: where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    known = format_of_model(components["transformer"])
    index: dict[str, Any] = {
        "_class_name": class_name,
        "_diffusers_version": diffusers.__version__,
        EXPERT_FOLDER: ["sememe", known.expert_class],
        **settings,
    }
    for name, component in components.items():
        if component is None:
            index[name] = [None, None]
        elif name == "transformer":
            component.save_backbone(folder / name, **size)
            component.save_expert(folder / EXPERT_FOLDER, **size)
            index[name] = ["diffusers", known.stock_class]
        else:
            component.save_pretrained(folder / name, **(size if isinstance(component, torch.nn.Module) else {}))
            _forget_source(folder / name / "config.json")
            index[name] = [type(component).__module__.split(".")[0], type(component).__name__]
    write_text(folder / INDEX_NAME, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _forget_source(path: Path) -> None:
    """Takes out of a configuration where diffusers read it: a path of this machine."""
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config.pop("_name_or_path", None) is not None:
        write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def choose_expert(layout: ModelLayout, class_name: str, expert: str | Path | None) -> Path | None:
    """The folder of the expert that goes with a model, or None where it is merged with the backbone.

    Args:
        layout: of the model.
        class_name: of the pipeline that asks.
        expert: that was asked for, as `find_expert` takes it; None for the model's own.

    Raises:
        ModelError: a model without an expert, one that cannot be given another, or an expert for another backbone.
    """
    if layout.kind == "published":
        if expert is not None:
            raise ModelError(
                f"expected a stock model to put the expert {expert} on, but {layout.folder} has an expert merged in; "
                "leave expert out, or split that model with `sememe convert` first"
            )
        return None
    if expert is not None:
        found = find_expert(expert)
        check_pair(layout.folder / "transformer", found)
        return found
    if layout.kind == "stock":
        raise ModelError(
            f"expected a {class_name}, but {layout.folder} is a stock {layout.index['_class_name']} without an expert; "
            "say which expert goes with it (expert=FOLDER)"
        )
    return layout.folder / EXPERT_FOLDER


def _load_transformer(layout: ModelLayout, expert: Path | None, torch_dtype: torch.dtype | None) -> Any:
    if expert is None:
        return load_merged(layout.folder / "transformer", torch_dtype or torch.float32)
    check_pair(layout.folder / "transformer", expert)
    return layout.format.transformer.from_folders(layout.folder / "transformer", expert, torch_dtype)


def _load_component(layout: ModelLayout, name: str, torch_dtype: torch.dtype | None) -> Any:
    folder, entry = layout.folder, layout.index.get(name)
    if not layout.has(name):
        return None
    if not isinstance(entry, list) or len(entry) != 2:
        raise ModelError(f"{folder / INDEX_NAME} must name the library and class of {name}, it says {entry}")
    library, class_name = entry
    if class_name not in ALLOWED_CLASSES[name].get(library, frozenset()):
        allowed = [f"{key}.{value}" for key, values in ALLOWED_CLASSES[name].items() for value in sorted(values)]
        raise ModelError(f"{name} of {folder} is a {library}.{class_name}; expected one of {', '.join(allowed)}")
    if name == "tokenizer":
        return load_tokenizer(folder / name)
    component = find_class(library, str(_READ_AS.get(class_name, class_name)))
    if hasattr(component, "forward"):
        dtype = None if name in _FULL_PRECISION else torch_dtype
        return load_strictly(component, folder / name, **{_dtype_argument(library): dtype or torch.float32})
    return load_without_weights(component, folder / name)


def find_class(library: str, class_name: str) -> Any:
    """The class of a component, which is one of `ALLOWED_CLASSES`."""
    module = "sememe.backbones.linear_autoencoder" if library == "sememe" else library
    return getattr(importlib.import_module(module), class_name)


def _dtype_argument(library: str) -> str:
    return "dtype" if library == "transformers" else "torch_dtype"


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_DOWNLOADED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:400]
        wanted = repository if revision is None else f"{repository} at revision {revision}"
        raise ModelError(f"{wanted} is no local folder and cannot be had from the hub: {reason}") from error
