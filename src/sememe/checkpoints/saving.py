"""Components of a model to a folder, in the layout of diffusers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from sememe.checkpoints.headers import CONFIG_NAME, MODEL_INDEX
from sememe.files import share_files, write_text


def save_components(
    folder: Path,
    components: Mapping[str, Any],
    settings: Mapping[str, Any],
    class_name: str,
    max_shard_size: int | str | None = None,
) -> None:
    """Write each component to a folder of its name, and `model_index.json` at the end.

    Args:
        folder: Folder of the model; it is made.
        components: Components by name; None for one that the model does without.
        settings: Further entries of the index.
        class_name: Class of the pipeline.
        max_shard_size: Largest size of a file of weights; None for the libraries' own.

    Raises:
        OutputError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_class_name": class_name, "_diffusers_version": diffusers.__version__}
    for name, component in components.items():
        if component is None:
            index[name] = [None, None]
            continue
        is_network = isinstance(component, torch.nn.Module) and max_shard_size is not None
        component.save_pretrained(folder / name, **({"max_shard_size": max_shard_size} if is_network else {}))
        _forget_source(folder / name / CONFIG_NAME)
        index[name] = [type(component).__module__.split(".")[0], type(component).__name__]
    share_files(folder)
    write_text(folder / MODEL_INDEX, json.dumps(index | dict(settings), indent=2, sort_keys=True) + "\n")


def _forget_source(path: Path) -> None:
    """Remove from a configuration where diffusers read it, which is a path of this machine."""
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config.pop("_name_or_path", None) is not None:
        write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
