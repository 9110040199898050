"""LoRA on a transformer with experts: adapters of the backbone leave the expert alone, and the other way round.

An adapter names the layers it changes by endings such as `to_q`, which both backbone and expert have. The
functions here restrict PEFT to one of the two.
"""

import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from diffusers.loaders import PeftAdapterMixin
from safetensors import SafetensorError

from sememe.compute.weight_storage import find_storage
from sememe.errors import ModelError

EXPERT_LORA_NAME = "expert_lora.safetensors"
ADAPTER_LAYER_PATTERN = r"\.(?:lora|lokr)_"
"""Found in the names of what PEFT puts beside a layer."""
_ADAPTER_PART = re.compile(ADAPTER_LAYER_PATTERN + ".*")


def is_adapter_layer(name: str) -> bool:
    """Whether a name within a model is that of an adapter's own layer."""
    return re.search(ADAPTER_LAYER_PATTERN, name) is not None


def check_can_adapt(model: Any, *, of_expert: bool) -> None:
    """Checks that new adapters can be put on the expert, or on the backbone.

    Raises:
        ModelError: its weights are 8-bit floats (quantised ones may be adapted), or out of reach.
    """
    weights = [weight for name, weight in model.named_parameters() if model.key_map.is_expert_key(name) == of_expert]
    part = "expert" if of_expert else "backbone"
    if find_storage(weights) == "fp8":
        raise ModelError(
            f"the {part}'s weights are stored as 8-bit floats (fp8), to which no adapter can be added; load the model "
            "again, then the adapter, and choose the storage after that"
        )
    if of_expert and any(weight.is_meta for weight in weights):
        raise ModelError(
            "the expert's weights are offloaded layer by layer, so that no adapter can be added; load the adapter "
            "first and choose the offload after that"
        )


def restrict_to_backbone(model: Any, config: Any) -> Any:
    """A PEFT configuration whose targets are those of `config` outside the expert."""
    return _exclude(config, _expert_pattern(model))


def restrict_to_expert(model: Any, config: Any) -> Any:
    """A PEFT configuration whose targets are those of `config` inside the expert."""
    return _exclude(config, rf"(?!{_expert_pattern(model)}$).*")


def add_expert_adapter(model: Any, config: Any, name: str = "default") -> None:
    """Puts a new adapter on the expert alone.

    Args:
        model: a transformer with experts.
        config: PEFT configuration, such as `LoraConfig`; its targets are looked for in the expert.
        name: Name of the adapter.

    Raises:
        ModelError: where no layer of the expert is a target, or the expert cannot be changed as it is.
    """
    check_can_adapt(model, of_expert=True)
    with _refetched(model):
        try:
            PeftAdapterMixin.add_adapter(model, restrict_to_expert(model, config), name)
        except ValueError as error:
            raise ModelError(f"no layer of the expert can take the adapter {name!r}: {_first_line(error)}") from error


@torch.no_grad()
def save_expert_adapter(model: Any, folder: str | Path, name: str = "default") -> None:
    """Writes an adapter of the expert, safetensors only.

    Raises:
        ModelError: where there is no such adapter, or it is not the expert's.
    """
    from peft import get_peft_model_state_dict

    if name not in getattr(model, "peft_config", {}):
        raise ModelError(f"this model has no adapter {name!r}, only {sorted(getattr(model, 'peft_config', {}))}")
    strangers = [
        key for key in get_peft_model_state_dict(model, adapter_name=name) if not model.key_map.is_expert_key(key)
    ]
    if strangers:
        raise ModelError(f"the adapter {name!r} is not one of the expert: it changes {strangers[0]}")
    model.save_lora_adapter(folder, adapter_name=name, weight_name=EXPERT_LORA_NAME)


def load_expert_adapter(model: Any, folder: str | Path, name: str = "default") -> None:
    """Reads what `save_expert_adapter` wrote.

    Raises:
        ModelError: where there is no such adapter, it does not fit this model's expert, or the expert cannot be
            changed as it is.
    """
    path = Path(folder) / EXPERT_LORA_NAME
    if not path.is_file():
        raise ModelError(f"expected an adapter of an expert at {path}, found nothing there")
    try:
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a whole safetensors file: {_first_line(error)}") from error
    check_adapter(model, tensors, str(path), of_expert=True)
    check_can_adapt(model, of_expert=True)
    with without_injection_warnings(), _refetched(model):
        model.load_lora_adapter(
            folder,
            prefix=None,
            adapter_name=name,
            weight_name=EXPERT_LORA_NAME,
            use_safetensors=True,
            local_files_only=True,
        )


@contextmanager
def _refetched(model: Any) -> Iterator[None]:
    """Under offload 'group', blocks are then fetched with the layers that are new, and a feature cache stays on."""
    with model._without_feature_cache():
        yield
        _maybe_remove_and_reapply_group_offloading(model)


@contextmanager
def without_injection_warnings() -> Iterator[None]:
    """The weights say which layers they are for; that their settings would match others as well is no news.

    Nor is it that nothing can be fused with weights of torchao, which is refused in any case.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="While injecting the PEFT adapters")
        warnings.filterwarnings("ignore", message="You have passed exclude_modules")
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated")
        yield


def check_adapter(model: Any, tensors: Mapping[str, torch.Tensor], source: str, *, of_expert: bool) -> None:
    """Checks the tensors of an adapter against the layers that they name.

    Args:
        model: a transformer with experts.
        tensors: by names within the model, with PEFT's endings.
        source: where they come from, for the message.
        of_expert: whether they must lie in the expert, or outside it.

    Raises:
        ModelError: where they do not fit.
    """
    layers = dict(model.named_modules())
    for key, tensor in tensors.items():
        path = _ADAPTER_PART.sub("", key)
        if model.key_map.is_expert_key(key) != of_expert:
            place, advice = ("expert", "load_expert_adapter") if not of_expert else ("backbone", "load_lora_weights")
            raise ModelError(f"{source} holds an adapter of the {place} ({path}); use {advice} for that")
        if path not in layers:
            raise ModelError(
                f"{source} was made for another model: it changes {path}, which a {type(model).__name__} of "
                f"{model.config.num_layers} blocks does not have"
            )
        _check_shape(layers[path], key, tensor, source)


def _check_shape(layer: Any, key: str, tensor: torch.Tensor, source: str) -> None:
    layer = getattr(layer, "base_layer", layer)
    is_linear = hasattr(layer, "in_features")
    place = {"lora_A": 1, "lora_B": 0}.get(key.split(".")[-2])
    if place is None or tensor.ndim < 2 or not (is_linear or hasattr(layer, "in_channels")):
        return
    sizes = (layer.out_features, layer.in_features) if is_linear else (layer.out_channels, layer.in_channels)
    if tensor.shape[place] != sizes[place]:
        raise ModelError(
            f"{source} was made for another model: {key} has width {tensor.shape[place]}, where this one has "
            f"{sizes[place]}"
        )


def _expert_pattern(model: Any) -> str:
    return rf"(?:{model.key_map.blocks}\.\d+\.expert|expert_embedder)(?:\..*)?"


def _exclude(config: Any, pattern: str) -> Any:
    """The configuration with one more pattern of what it leaves alone."""
    given = getattr(config, "exclude_modules", None)
    if given and not isinstance(given, str):
        given = rf"(?:.*\.)?(?:{'|'.join(map(re.escape, given))})"
    restricted = copy.copy(config)
    restricted.exclude_modules = f"(?:{pattern})|(?:{given})" if given else pattern
    return restricted


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]
