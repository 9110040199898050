"""Peak memory of a computation, counted tensor by tensor.

The resident size of a process says little: allocators keep what they got, libraries load late. Here every tensor that
an operation makes is counted from its birth to its death, so that two runs give the same number to the byte, on any
device, and also where nothing is computed at all (on the meta device, or under torch's fake tensors).
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class TrackedMemory:
    """Bytes of the tensors made since tracking began.

    Attributes:
        live_bytes: Bytes of tensors that are still alive.
        peak_bytes: Most bytes that were alive at once.
    """

    def __init__(self) -> None:
        self.live_bytes = 0
        self.peak_bytes = 0

    def reset_peak(self) -> None:
        """Restart the peak from what is alive now."""
        self.peak_bytes = self.live_bytes

    def _add(self, num_bytes: int) -> None:
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _remove(self, num_bytes: int) -> None:
        self.live_bytes -= num_bytes


@contextmanager
def track_memory(device: str | None = None) -> Iterator[TrackedMemory]:
    """Count the bytes of the tensors that operations make within the block.

    What existed before (weights, inputs) counts nothing, and nothing is subtracted where it is freed. Scratch space
    inside one kernel is not seen: the workspace of a convolution, or the tiles of a fused attention.

    Args:
        device: Type of the only device whose tensors count; None for all devices.

    Yields:
        The record, which is updated until the block ends.
    """
    memory = TrackedMemory()
    with _Tracker(memory, device):
        yield memory


def measure_peak(work: Callable[[], Any]) -> int:
    """Return the most bytes that the tensors of a computation, its result included, took at once; without gradients."""
    with torch.no_grad(), track_memory() as memory:
        result = work()
    del result
    return memory.peak_bytes


class _Tracker(TorchDispatchMode):
    """Sees every operation below autograd, where composed operations are already split into those that allocate."""

    def __init__(self, memory: TrackedMemory, device: str | None) -> None:
        super().__init__()
        self.memory = memory
        self.device = device
        self.known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            # Made before tracking began: a result that shares its storage is no new memory.
            self.known.setdefault(tensor.untyped_storage(), 0)
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in self.known and self.device in (None, tensor.device.type):
                num_bytes = storage.nbytes()
                self.known[storage] = num_bytes
                self.memory._add(num_bytes)
                weakref.finalize(storage, self.memory._remove, num_bytes)
        return result


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))
