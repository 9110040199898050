"""The moving average of the weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sememe.errors import ModelError


class WeightAverage:
    """An exponential moving average of parameters, in float32, updated by a few calls for all of them."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self._parameters = dict(parameters)
        self._decay = decay
        self._average = {name: tensor.detach().float().clone() for name, tensor in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step` (from 0)."""
        # Held down in the first steps: else the average would consist of the initial weights for a long time.
        decay = min(self._decay, (1 + step) / (10 + step))
        averages, weights = list(self._average.values()), list(self._parameters.values())
        if any(weight.dtype != torch.float32 for weight in weights):
            weights = [weight.float() for weight in weights]
        torch._foreach_lerp_(averages, weights, 1.0 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """The averages themselves, by parameter name (not copies)."""
        return dict(self._average)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the averages, as `tensors` gave them. Raises `ModelError` where names or shapes differ."""
        copy_tensors(tensors, self._average, "the averaged weights")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the parameters for the duration of a block, then the weights back, bit by bit."""
        with borrowed_weights(self._parameters, self._average):
            yield


@contextmanager
def borrowed_weights(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Hold other values in the parameters for the duration of a block."""
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        _copy_all(list(parameters.values()), [values[name] for name in parameters])
        yield
    finally:
        _copy_all(list(parameters.values()), list(kept.values()))


@torch.no_grad()
def _copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


@torch.no_grad()
def copy_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors by name. Raises `ModelError`, before anything is changed, where names or shapes differ."""
    missing, extra = sorted(target.keys() - source.keys()), sorted(source.keys() - target.keys())
    if missing or extra:
        raise ModelError(
            f"{what} must hold the {len(target)} tensors of the model, but {_list_names('lacks', missing)}"
            f"{' and ' if missing and extra else ''}{_list_names('has also', extra)}; use those of the same model"
        )
    for name, tensor in target.items():
        if tensor.shape != source[name].shape:
            raise ModelError(
                f"{what}: {name} must have shape {tuple(tensor.shape)}, got {tuple(source[name].shape)}; "
                "use those of the same model"
            )
    for name, tensor in target.items():
        tensor.copy_(source[name])


def _list_names(verb: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    return f"{verb} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
