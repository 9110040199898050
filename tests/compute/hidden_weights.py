"""A stand-in for an accelerator: weights that are not where they are needed hold no numbers.

Without an accelerator all weights are on the CPU wherever they are sent, so that a test would not notice one that was
not fetched. Here what "leaves" is replaced by NaN and what "comes" gets its values back.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers.hooks.group_offloading import ModuleGroup
from torch import nn

from sememe.compute import offload
from sememe.video_as_prompt import reference_files


class Safe:
    """Keeps the values of tensors that have left."""

    def __init__(self) -> None:
        self.values: dict[int, torch.Tensor] = {}
        self.num_fetches = 0
        self.spared: set[int] = set()

    def spare(self, tensors: Iterable[torch.Tensor]) -> None:
        """Never hides these."""
        self.spared |= {id(tensor) for tensor in tensors}

    def hide(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            if tensor.is_floating_point() and id(tensor) not in self.values.keys() | self.spared:
                self.values[id(tensor)] = tensor.data
                tensor.data = torch.full_like(tensor.data, torch.nan)

    def show(self, tensors: Iterable[torch.Tensor]) -> None:
        self.num_fetches += 1
        for tensor in tensors:
            if id(tensor) in self.values:
                tensor.data = self.values.pop(id(tensor))

    def hides(self, module: nn.Module) -> bool:
        """Whether all of a module's weights have left."""
        return all(id(parameter) in self.values for parameter in module.parameters())

    def shows(self, module: nn.Module) -> bool:
        """Whether none has."""
        return not any(id(parameter) in self.values for parameter in module.parameters())


def tensors_of(*modules: nn.Module) -> Iterator[torch.Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


def hide_offloaded(monkeypatch: pytest.MonkeyPatch) -> Safe:
    """Hides what diffusers, accelerate and sememe send away in this test, and shows what they fetch."""
    safe = Safe()
    find_value = reference_files._find_value
    # A fingerprint reads weights where they wait; it does not compute with them.
    monkeypatch.setattr(
        reference_files,
        "_find_value",
        lambda module, name, weight: safe.values.get(id(weight), find_value(module, name, weight)),
    )

    def group_tensors(group: Any) -> list[torch.Tensor]:
        return [*tensors_of(*group.modules), *group.parameters, *group.buffers]

    def leave(hook: CpuOffload, module: nn.Module) -> nn.Module:
        safe.hide(tensors_of(module))
        return module

    def come(hook: CpuOffload, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if hook.prev_module_hook is not None:
            hook.prev_module_hook.offload()
        safe.show(tensors_of(module))
        return args, kwargs

    def move(modules: Iterable[nn.Module], device: Any) -> None:
        # A device with a number is where the backbone is; the bare name is where the expert rests.
        (safe.hide if device == "cpu" else safe.show)(tensors_of(*modules))

    monkeypatch.setattr(ModuleGroup, "offload_", lambda group: safe.hide(group_tensors(group)))
    monkeypatch.setattr(ModuleGroup, "onload_", lambda group: safe.show(group_tensors(group)))
    monkeypatch.setattr(CpuOffload, "init_hook", leave)
    monkeypatch.setattr(CpuOffload, "pre_forward", come)
    monkeypatch.setattr(offload, "move_modules", move)
    return safe
