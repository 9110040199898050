"""Loading parts of a model, each from a folder of its own, in float32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sememe.checkpoints.component_files import load_strictly
from sememe.checkpoints.tensor_files import read_json
from sememe.errors import ModelError


def load_text_encoder(folder: Path) -> Any:
    """The text encoder of a folder, in float32 and evaluation mode.

    Raises:
        ModelError: it is not whole, or of a class that is not known.
    """
    import torch
    from transformers import T5EncoderModel, UMT5EncoderModel

    classes = {"UMT5EncoderModel": UMT5EncoderModel, "T5EncoderModel": T5EncoderModel}
    names = read_json(folder / "config.json").get("architectures") or ["none"]
    if names[0] not in classes:
        raise ModelError(f"expected one of {', '.join(classes)} in {folder}, got {names[0]}")
    return load_strictly(classes[names[0]], folder, dtype=torch.float32)


def load_autoencoder(folder: Path) -> Any:
    """The video autoencoder of a folder, in float32 and evaluation mode.

    Raises:
        ModelError: it is not whole, or of a class that is not known.
    """
    from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan

    from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder

    return _load_one_of((LinearVideoAutoencoder, AutoencoderKLWan, AutoencoderKLCogVideoX), folder)


def load_backbone(folder: Path) -> Any:
    """The stock transformer of a folder, in float32 and evaluation mode.

    Raises:
        ModelError: it is not whole, or of a class that is not known.
    """
    from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel

    return _load_one_of((WanTransformer3DModel, CogVideoXTransformer3DModel), folder)


def load_scheduler(folder: Path) -> Any:
    """The scheduler of a folder, of a class that a model folder may name.

    Raises:
        ModelError: it cannot be read, or is of another class.
    """
    import diffusers

    from sememe.video_as_prompt.model_folders import ALLOWED_CLASSES

    config = read_json(folder / "scheduler_config.json")
    known, name = ALLOWED_CLASSES["scheduler"]["diffusers"], str(config.get("_class_name"))
    if name not in known:
        raise ModelError(f"expected one of {', '.join(sorted(known))} in {folder}, got {name}")
    return getattr(diffusers, name).from_config(config)


def _load_one_of(classes: Sequence[type], folder: Path) -> Any:
    import torch

    by_name = {each.__name__: each for each in classes}
    name = str(read_json(folder / "config.json").get("_class_name"))
    if name not in by_name:
        raise ModelError(f"expected one of {', '.join(by_name)} in {folder}, got {name}")
    return load_strictly(by_name[name], folder, torch_dtype=torch.float32)
