"""What a whole generation has on its device, counted on the CPU: tensors that are made, and weights that are there.

Weights that leave are hidden (see `compute.hidden_weights`), and count only while they are shown.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from compute.hidden_weights import hide_offloaded, tensors_of
from sememe.compute.placement import apply_offload
from sememe.compute.rehearsal import TrackedMemory, track_memory


class CountedDevice:
    """A device of which the bytes in use are known.

    Attributes:
        peak_bytes: the most so far.
    """

    def __init__(self, memory: TrackedMemory) -> None:
        self.memory = memory
        self.present: dict[int, int] = {}

    @property
    def peak_bytes(self) -> int:
        return self.memory.peak_bytes

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            if id(tensor) not in self.present:
                self.present[id(tensor)] = tensor.nbytes
                self.memory._add(tensor.nbytes)

    def remove(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            self.memory._remove(self.present.pop(id(tensor), 0))


@contextmanager
def count_device(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, kind: str, level: str = "block", parts: Iterable[str] = ()
) -> Iterator[CountedDevice]:
    """Puts a pipeline to work as `apply_offload` does, and counts what is on its device from then on."""
    safe = hide_offloaded(monkeypatch)
    with track_memory() as memory:
        device = CountedDevice(memory)
        hide, show = safe.hide, safe.show

        def leave(tensors: Iterable[torch.Tensor]) -> None:
            leaving = list(tensors)
            with _disable_current_modes():
                hide(leaving)
            device.remove(leaving)

        def come(tensors: Iterable[torch.Tensor]) -> None:
            coming = list(tensors)
            with _disable_current_modes():
                show(coming)
            device.add(coming)

        monkeypatch.setattr(safe, "hide", leave)
        monkeypatch.setattr(safe, "show", come)
        if kind == "sequential":
            _count_layers(device, monkeypatch)
        modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
        if kind == "none":
            device.add(tensors_of(*modules))
        with _disable_current_modes():
            apply_offload(pipeline, kind, "cpu", group_level=level, parts=tuple(parts))
        memory.reset_peak()
        yield device


def _count_layers(device: CountedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of which accelerate fetches the weights for their own forward."""
    before, after = AlignDevicesHook.pre_forward, AlignDevicesHook.post_forward
    own: dict[int, list[torch.Tensor]] = {}

    def fetch(hook: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            found = before(hook, module, *args, **kwargs)
        own[id(module)] = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        device.add(own[id(module)])
        return found

    def drop(hook: Any, module: nn.Module, output: Any) -> Any:
        device.remove(own.pop(id(module), []))
        with _disable_current_modes():
            return after(hook, module, output)

    patched: tuple[tuple[str, Callable[..., Any]], ...] = (("pre_forward", fetch), ("post_forward", drop))
    for name, method in patched:
        monkeypatch.setattr(AlignDevicesHook, name, method)
