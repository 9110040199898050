"""Weights of a transformer in fewer bits: torchao and bitsandbytes on the blocks' linear layers.

Everything here is approximate: how far results move depends on the model and is to be measured. What is small or
sensitive to rounding (embedders, norms with what modulates them, the output layer) stays as it is.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from diffusers import ModelMixin
from torch import nn

from sememe.errors import InputError, MissingExtraError, ModelError

Library = Literal["torchao", "bitsandbytes"]
ADAPTER_LAYER_PATTERN = r"\.(?:lora|lokr)_"
"""Found in the names of what PEFT puts beside a layer."""


def find_library(module: nn.Module) -> Library | None:
    """Return the library that has quantised a weight in `module`; None where none has."""
    return next(filter(None, map(_library_of, module.parameters())), None)


def find_storage(parameters: Iterable[torch.Tensor]) -> Library | Literal["fp8"] | None:
    """Return what stores a weight in fewer bits: a library, or `fp8` for layerwise casting; None for nothing."""
    for parameter in parameters:
        library = _library_of(parameter)
        if library is not None:
            return library
        if parameter.is_floating_point() and parameter.dtype.itemsize == 1:
            return "fp8"
    return None


def check_savable(parameters: Iterable[torch.Tensor]) -> None:
    """Raise `ModelError` for weights in fewer bits, of which a file would be less exact than the model."""
    storage = find_storage(parameters)
    if storage is not None:
        raise ModelError(
            f"the weights are stored in fewer bits ({storage}), and a file of them would be less exact than the model; "
            "load the model again and save it before its storage is changed"
        )


def _library_of(parameter: Any) -> Library | None:
    packages = {type(each).__module__.split(".")[0] for each in (parameter, parameter.data)}
    return next((library for library in get_args(Library) if library in packages), None)


Quantization = Literal["int8wo", "int8dq", "fp8wo", "int8", "nf4"]
"""What a linear layer becomes:

- int8wo: torchao, 8-bit integer weights, multiplied in the inputs' precision;
- int8dq: torchao, the same with inputs rounded to 8 bits as they come;
- fp8wo: torchao, 8-bit floating-point weights;
- int8: bitsandbytes, LLM.int8 without outliers;
- nf4: bitsandbytes, 4-bit NormalFloat weights in groups of 64.
"""

Parts = Literal["backbone", "expert", "both"]

_TORCHAO_CONFIGS = {
    "int8wo": "Int8WeightOnlyConfig",
    "int8dq": "Int8DynamicActivationInt8WeightConfig",
    "fp8wo": "Float8WeightOnlyConfig",
}


def quantize_transformer(transformer: ModelMixin, kind: str, parts: str = "both") -> None:
    """Quantise the linear layers in a transformer's blocks, in place and for inference only.

    Do it before the transformer is moved, offloaded or compiled; LoRA weights may be loaded before or after, and stay
    as they are. A quantised transformer cannot be saved, and no LoRA weights can be fused into it.

    Args:
        transformer: A transformer with experts, in the precision in which it is to compute.
        kind: One of `Quantization`.
        parts: The backbone's blocks, the experts in them, or both.

    Raises:
        InputError: An unknown kind or part, or a transformer that is quantised already.
        MissingExtraError: The library that does it is not installed.
    """
    if kind not in get_args(Quantization):
        raise InputError(f"expected a quantisation out of {', '.join(get_args(Quantization))}, got {kind!r}")
    if parts not in get_args(Parts):
        raise InputError(f"expected parts to be one of {', '.join(get_args(Parts))}, got {parts!r}")
    layers = dict(quantizable_layers(transformer, parts))
    if any(find_library(layer) for layer in layers.values()):
        raise InputError("this transformer is quantised already; load it again to quantise it otherwise")
    if kind in _TORCHAO_CONFIGS:
        _quantize_with_torchao(transformer, frozenset(layers), _TORCHAO_CONFIGS[kind])
    else:
        _quantize_with_bitsandbytes(transformer, layers, kind)


def check_installed(kind: str) -> None:
    """Raise `MissingExtraError` where the library that does a quantisation is not installed."""
    library = "torchao" if kind in _TORCHAO_CONFIGS else "bitsandbytes"
    if find_spec(library) is None:
        raise MissingExtraError(library, "quant")


def quantizable_layers(transformer: ModelMixin, parts: str = "both") -> Iterator[tuple[str, nn.Linear]]:
    """Yield names and layers that `quantize_transformer` would change, without those of adapters."""
    keys: Any = getattr(transformer, "key_map", None)
    lists = tuple(f"{name}." for name, child in transformer.named_children() if isinstance(child, nn.ModuleList))
    for name, module in transformer.named_modules():
        # CogVideoX's modulated norms hold a linear layer each.
        if not isinstance(module, nn.Linear) or not name.startswith(lists) or "norm" in name:
            continue
        if re.search(ADAPTER_LAYER_PATTERN, name):
            continue
        owner = "expert" if keys is not None and keys.is_expert_key(name) else "backbone"
        if parts in (owner, "both"):
            yield name, module


def _quantize_with_torchao(transformer: ModelMixin, names: frozenset[str], config: str) -> None:
    quantization: Any = _import_extra("torchao.quantization")
    is_chosen: Callable[[nn.Module, str], bool] = lambda _, name: name in names  # noqa: E731
    # By default torchao lets the whole process multiply float32 matrices as TF32, those of the autoencoder too.
    quantization.quantize_(transformer, getattr(quantization, config)(set_inductor_config=False), filter_fn=is_chosen)


@torch.no_grad()
def _quantize_with_bitsandbytes(transformer: ModelMixin, layers: dict[str, nn.Linear], kind: str) -> None:
    library: Any = _import_extra("bitsandbytes").nn
    for name, layer in layers.items():
        shape: Any = (layer.in_features, layer.out_features, layer.bias is not None)
        made: Any
        if kind == "nf4":
            made = library.Linear4bit(*shape, compute_dtype=layer.weight.dtype, quant_type="nf4", device="meta")
            made.weight = library.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
            # On some CPUs the library changes the layout of weights at their first use, for a kernel that takes certain
            # shapes only; without that it computes the same for all shapes.
            made.support_avx512bf16_for_cpu = False
        else:
            made = library.Linear8bitLt(*shape, has_fp16_weights=False, threshold=0.0, device="meta")
            made.weight = library.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        if layer.bias is not None:
            made.bias = nn.Parameter(layer.bias.data, requires_grad=False)
        owner, _, last = name.rpartition(".")
        # Weights are rounded as they move to a device, be it the one where they are.
        setattr(transformer.get_submodule(owner), last, made.to(layer.weight.device).train(layer.training))


def _import_extra(name: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(name.split(".", maxsplit=1)[0], "quant") from error
