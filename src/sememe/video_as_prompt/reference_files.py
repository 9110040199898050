"""Files of encoded references, and the check that the model that reads one has encoded it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import ModelMixin
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import nn

from sememe.checkpoints.tensor_files import save_tensors
from sememe.errors import InputError, ModelError
from sememe.files import atomic_path
from sememe.records import flatten, to_plain
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.rotary import TokenExtent
from sememe.video_as_prompt.settings import Settings

_SUFFIX = ".safetensors"
_KIND = "sememe_reference"
_SAMPLE = 8  # values of each tensor


def fingerprint_transformer(transformer: ModelMixin) -> str:
    """Return a hash of a transformer's weights, by a few values of each, wherever they are.

    It is the same in every precision in which weights are loaded, and another with LoRA weights, with another scale of
    these, or with weights in fewer bits.
    """
    # Settings with an underscore say where and by what the model was saved.
    config = {name: to_plain(value) for name, value in transformer.config.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, values in _sample(transformer):
        digest.update(name.encode())
        # Rounded as loading in bfloat16 rounds them.
        digest.update(values.detach().to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()


def _sample(transformer: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in transformer.named_modules():
        if isinstance(module, BaseTunerLayer):  # the scales of its adapters are no weights
            active = () if module.disable_adapters else module.active_adapters
            yield f"{prefix} {[(name, module.scaling.get(name)) for name in active]}", torch.empty(0)
        for name, parameter in module.named_parameters(recurse=False):
            value = _find_value(module, name, parameter).data
            kind = "" if type(value) is torch.Tensor else type(value).__name__
            if kind and hasattr(value, "dequantize"):
                value = value.dequantize()
            yield f"{prefix}.{name} {tuple(value.shape)} {kind}", value.flatten()[:_SAMPLE]


def _find_value(module: nn.Module, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """Return a weight, which under offload by layers a hook of its module holds."""
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        weights: Mapping[str, torch.Tensor] | None = getattr(each, "weights_map", None)
        if parameter.is_meta and weights is not None:
            return weights[name]
    return parameter


def check_name(path: str | Path) -> Path:
    """Return the path of a file for an encoded reference.

    Raises:
        InputError: The name does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != _SUFFIX:
        raise InputError(f"expected a name for the reference that ends in {_SUFFIX}, got {path}")
    return path


def save_reference(inputs: ReferenceInputs, settings: Settings, fingerprint: str, path: str | Path) -> None:
    """Write an encoded reference as one safetensors file: what the expert reads, far less than what it makes of it.

    Raises:
        InputError: The name does not end in .safetensors.
        OutputError: It cannot be written.
    """
    path = check_name(path)
    kept = {key: to_plain(value) for key, value in flatten(settings).items() if not key.endswith("negative_references")}
    extent = None if inputs.extent is None else asdict(inputs.extent)
    about = {"fingerprint": fingerprint, "settings": kept, "extent": extent}
    groups = {"latents": inputs.latents, "text": inputs.text_embeds, "image": inputs.image_embeds or ()}
    tensors = {f"{name}.{index}": each.clone() for name, found in groups.items() for index, each in enumerate(found)}
    with atomic_path(path) as part:
        save_tensors(tensors, part, {_KIND: json.dumps(about)})


def load_reference(path: str | Path) -> tuple[ReferenceInputs, Settings, str]:
    """Read what `save_reference` wrote.

    Returns:
        Inputs of the expert on the CPU, settings and fingerprint.

    Raises:
        ModelError: It is no such file, or is damaged.
    """
    try:
        if not Path(path).is_file():  # a pipe would never end
            raise OSError
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[_KIND])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        settings = Settings().override(**{str(key): value for key, value in about["settings"].items()})
        latents, texts, images = (_list_tensors(tensors, *of) for of in (("latents", 5), ("text", 3), ("image", 3)))
        extent = None if about["extent"] is None else TokenExtent(**about["extent"])
        return ReferenceInputs(latents, texts, images or None, extent), settings, str(about["fingerprint"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, InputError, ModelError) as error:
        raise ModelError(f"expected an encoded reference in {path}, but it is none or is damaged") from error


def _list_tensors(tensors: Mapping[str, torch.Tensor], name: str, ndim: int) -> tuple[torch.Tensor, ...]:
    found = tuple(tensors[f"{name}.{index}"] for index in range(sum(key.startswith(f"{name}.") for key in tensors)))
    if any(each.ndim != ndim or not each.is_floating_point() for each in found):
        raise ValueError
    return found
