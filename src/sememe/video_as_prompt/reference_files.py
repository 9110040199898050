"""Encoded references in files, and what tells whether a reference was encoded by the model that is to read it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn

from sememe.checkpoints.tensor_files import save_tensors
from sememe.errors import InputError, ModelError
from sememe.files import atomic_path
from sememe.records import flatten, to_plain
from sememe.video_as_prompt.reference_attention import ReferenceStream
from sememe.video_as_prompt.references import ReferenceCache, ReferenceTokens
from sememe.video_as_prompt.rotary import RotaryTables
from sememe.video_as_prompt.settings import Settings

_SUFFIX = ".safetensors"
_KIND = "sememe_reference"
_SAMPLE = 8  # values of each tensor


def fingerprint_transformer(transformer: ModelMixin) -> str:
    """Return a hash of a transformer's weights, by a few values of each, wherever they are.

    It is the same in every precision in which weights are loaded, and another with LoRA weights or with weights in
    fewer bits.
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
        for name, parameter in module.named_parameters(recurse=False):
            value = _find_value(module, name, parameter).data
            kind = "" if type(value) is torch.Tensor else type(value).__name__
            if kind and hasattr(value, "dequantize"):
                value = value.dequantize()
            yield f"{prefix}.{name} {tuple(value.shape)} {kind}", value.flatten()[:_SAMPLE]


def _find_value(module: nn.Module, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """Return a weight, which under offload by layers is with a hook of its module."""
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


def save_reference(
    payload: ReferenceCache | ReferenceTokens, settings: Settings, fingerprint: str, path: str | Path
) -> None:
    """Write an encoded reference as one safetensors file.

    Raises:
        InputError: The name does not end in .safetensors.
        OutputError: It cannot be written.
    """
    path = check_name(path)
    assert payload.num_ranks == 1
    kept = {key: to_plain(value) for key, value in flatten(settings).items() if not key.endswith("negative_references")}
    about: dict[str, Any] = {"grid": payload.grid, "fingerprint": fingerprint, "settings": kept}
    tensors: dict[str, torch.Tensor] = {}
    if isinstance(payload, ReferenceCache):
        for name, found in (("key", payload.keys), ("value", payload.values)):
            tensors |= {f"{name}.{index}": tensor for index, tensor in enumerate(found)}
    else:
        about["lengths"] = payload.stream.lengths
        tensors["hidden_states"] = payload.hidden_states
        tensors |= {f"text.{index}": text for index, text in enumerate(payload.stream.texts)}
        if payload.stream.temb is not None:
            tensors["temb"] = payload.stream.temb
        if payload.stream.rotary is not None:
            tensors |= payload.stream.rotary._asdict()
    with atomic_path(path) as part:
        save_tensors({name: tensor.clone() for name, tensor in tensors.items()}, part, {_KIND: json.dumps(about)})


def load_reference(path: str | Path) -> tuple[ReferenceCache | ReferenceTokens, Settings, str]:
    """Read what `save_reference` wrote.

    Returns:
        Payload on the CPU, settings and fingerprint.

    Raises:
        ModelError: It is no such file, or is damaged.
    """
    try:
        if not Path(path).is_file():  # a pipe would never end
            raise OSError
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[_KIND])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        grid = (int(about["grid"][0]), int(about["grid"][1]))
        settings = Settings().override(**{str(key): value for key, value in about["settings"].items()})
        fingerprint = str(about["fingerprint"])
        if "hidden_states" not in tensors:
            keys, values = (_list_tensors(tensors, name) for name in ("key", "value"))
            return ReferenceCache(keys, values, grid), settings, fingerprint
        rotary = RotaryTables(tensors["cos"], tensors["sin"]) if "cos" in tensors else None
        lengths = tuple(int(length) for length in about["lengths"])
        stream = ReferenceStream(_list_tensors(tensors, "text"), lengths, tensors.get("temb"), rotary)
        return ReferenceTokens(tensors["hidden_states"], stream, grid), settings, fingerprint
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, InputError) as error:
        raise ModelError(f"expected an encoded reference in {path}, but it is none or is damaged") from error


def _list_tensors(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[torch.Tensor, ...]:
    count = sum(key.startswith(f"{name}.") for key in tensors)
    return tuple(tensors[f"{name}.{index}"] for index in range(count))
