"""Loading parts of a model, each from a folder of its own, in float32."""

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
    import torch
    from diffusers import AutoencoderKLCosmos, AutoencoderKLWan

    classes = {"AutoencoderKLCosmos": AutoencoderKLCosmos, "AutoencoderKLWan": AutoencoderKLWan}
    name = str(read_json(folder / "config.json").get("_class_name"))
    if name not in classes:
        raise ModelError(f"expected one of {', '.join(classes)} in {folder}, got {name}")
    return load_strictly(classes[name], folder, torch_dtype=torch.float32)


def load_backbone(folder: Path) -> Any:
    """The stock transformer of a folder, in float32 and evaluation mode.

    Raises:
        ModelError: it is not whole.
    """
    import torch
    from diffusers import WanTransformer3DModel

    return load_strictly(WanTransformer3DModel, folder, torch_dtype=torch.float32)
