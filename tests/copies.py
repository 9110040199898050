"""Models that many tests need, built once in a process."""

import functools
import io
import pickle  # noqa: TID251 (of what this process has made, in memory)
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
M = TypeVar("M", bound=nn.Module)


def built_once(build: Callable[P, M]) -> Callable[P, M]:
    """Have a factory build a model once for the same settings, and return a copy, which takes a tenth of the time.

    The generator of torch is left as building leaves it.
    """
    built: dict[str, tuple[Mould, Tensor]] = {}

    @functools.wraps(build)
    def make(*values: P.args, **settings: P.kwargs) -> M:
        key = repr((values, sorted(settings.items()), torch.get_default_device(), torch.get_default_dtype()))
        if key not in built:
            built[key] = (Mould(build(*values, **settings)), torch.get_rng_state())
        mould, state = built[key]
        torch.set_rng_state(state)
        model: M = mould.copy()
        return model

    return make


class Mould:
    """A model pickled but for its tensors, of which copies are made; `copy.deepcopy` takes seven times as long."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors: list[Tensor] = []
        file = io.BytesIO()
        pickler = pickle.Pickler(file)
        pickler.persistent_id = self._keep  # type: ignore[method-assign]
        pickler.dump(model)
        self._pickled = file.getvalue()

    def copy(self) -> Any:
        """Return a copy of the model."""
        copies = [_copy(tensor) for tensor in self._tensors]
        unpickler = pickle.Unpickler(io.BytesIO(self._pickled))  # noqa: S301 (its own)
        unpickler.persistent_load = copies.__getitem__  # type: ignore[method-assign]
        return unpickler.load()

    def _keep(self, value: object) -> int | None:
        if not isinstance(value, Tensor):
            return None
        for number, tensor in enumerate(self._tensors):
            if tensor is value:
                return number
        self._tensors.append(value)
        return len(self._tensors) - 1


def _copy(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
