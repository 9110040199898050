"""A Video-As-Prompt model on disk: a stock diffusers folder with the expert in its own folder.

model_index.json
transformer/     the frozen backbone, as diffusers writes it
expert/          the expert's tensors alone
vae/ text_encoder/ tokenizer/ scheduler/, and image_encoder/ image_processor/ for backbones that read CLIP

The released models have another layout, and a stock folder has no expert; both are read too (see `layouts`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from sememe.checkpoints.components import find_class, load_component, read_entry
from sememe.checkpoints.zoo import find_folder
from sememe.errors import ModelError
from sememe.files import write_text
from sememe.video_as_prompt.formats import format_of_model
from sememe.video_as_prompt.layouts import COMPONENTS, EXPERT_FOLDER, INDEX_NAME, ModelLayout, check_whole, read_layout
from sememe.video_as_prompt.merged_files import load_merged
from sememe.video_as_prompt.released_defaults import released_defaults
from sememe.video_as_prompt.separate_files import check_pair
from sememe.video_as_prompt.system import VIDEO_AS_PROMPT

_COMPONENTS = tuple(name for name in COMPONENTS if name != "transformer")


def find_expert(name: str | Path) -> Path:
    """Return the folder of an expert alone: that folder, or the one of a model which has an expert.

    Raises:
        ModelError: There is none.
    """
    folder = find_folder(name, system=VIDEO_AS_PROMPT.name)
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
    """Load what `model_index.json` names, except what is given, and the settings of the pipeline.

    Args:
        folder: A model in one of the layouts.
        torch_dtype: Precision of the transformer and the text encoder; None for float32.
        given: Components that are not to be loaded.
        class_name: Class of the pipeline.
        expert: Folder of an expert, for a stock model, or instead of the model's own.

    Raises:
        ModelError: The folder is not a model of this kind, is not whole, or has no expert.
    """
    layout = read_layout(folder)
    source = None
    if "transformer" not in given:
        source = choose_expert(layout, class_name, expert)
    elif expert is not None:
        raise ModelError(f"expected an expert or a transformer that has one, got both: {expert} and the transformer")
    check_whole(layout, given.keys(), needs_expert=source == folder / EXPERT_FOLDER)
    parts = dict(given)
    for name in _COMPONENTS:
        if name not in given:
            parts[name] = _load_component(layout, name, torch_dtype)
    if "transformer" not in given:
        parts["transformer"] = _load_transformer(layout, source, torch_dtype)
    defaults = layout.index.get("generation_defaults")
    if defaults is None:
        name = f"{layout.format.name}-ti2v" if layout.has_token_timesteps else layout.format.name
        defaults = released_defaults(name, parts["transformer"], parts["vae"])
    settings = {"generation_defaults": defaults, "expand_timesteps": layout.has_token_timesteps}
    return {name: parts[name] for name in ("transformer", *_COMPONENTS)} | settings


def save_components(
    folder: Path,
    components: Mapping[str, Any],
    settings: Mapping[str, Any],
    class_name: str,
    max_shard_size: int | str | None,
) -> None:
    """Write every component to its folder, the expert to its own, and `model_index.json` at the end.

    Raises:
        OutputError: The folder cannot be written.
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
    """Remove from a configuration where diffusers read it, which is a path of this machine."""
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config.pop("_name_or_path", None) is not None:
        write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def choose_expert(layout: ModelLayout, class_name: str, expert: str | Path | None) -> Path | None:
    """Return the folder of the expert that goes with a model, or None where it is merged with the backbone.

    Args:
        layout: Layout of the model.
        class_name: Class of the pipeline.
        expert: Expert to use, as `find_expert` takes it; None for the model's own.

    Raises:
        ModelError: The model has no expert, cannot be given another, or the expert is for another backbone.
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


def find_component_class(layout: ModelLayout, name: str) -> Any:
    """Return the class of a component, or None where the model does without it.

    Raises:
        ModelError: The index names none, or one that is not loaded here.
    """
    folder = layout.folder / name
    return find_class(name, folder, read_entry(name, folder, layout.index.get(name))) if layout.has(name) else None


def _load_component(layout: ModelLayout, name: str, torch_dtype: torch.dtype | None) -> Any:
    component = find_component_class(layout, name)
    return None if component is None else load_component(name, layout.folder / name, torch_dtype, component)
