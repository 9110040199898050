"""In which form a model's weights are stored: as they were loaded, or in fewer bits, with which less can be done."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from sememe.errors import ModelError

Library = Literal["torchao", "bitsandbytes"]


def find_library(module: nn.Module) -> Library | None:
    """The library that has quantised a weight in `module`, if any has."""
    for parameter in module.parameters():
        library = _library_of(parameter)
        if library is not None:
            return library
    return None


def find_storage(parameters: Iterable[torch.Tensor]) -> Library | Literal["fp8"] | None:
    """What stores one of some weights in fewer bits: a library, or layerwise casting from 8-bit floats (`fp8`)."""
    for parameter in parameters:
        library = _library_of(parameter)
        if library is not None:
            return library
        if parameter.is_floating_point() and parameter.dtype.itemsize == 1:
            return "fp8"
    return None


def check_savable(parameters: Iterable[torch.Tensor]) -> None:
    """Raises `ModelError` for weights in fewer bits: files hold them as they were before."""
    storage = find_storage(parameters)
    if storage is not None:
        raise ModelError(
            f"the weights are stored in fewer bits ({storage}), and a file of them would be less exact than the model; "
            "load the model again and save it before its storage is changed"
        )


def _library_of(parameter: Any) -> Library | None:
    for kind in (type(parameter), type(parameter.data)):
        package = kind.__module__.split(".")[0]
        if package == "torchao":
            return "torchao"
        if package == "bitsandbytes":
            return "bitsandbytes"
    return None
