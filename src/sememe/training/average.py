"""The moving average of the weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sememe.errors import ModelError


class WeightAverage:
    """An exponential moving average of parameters, in float32, updated by a few calls for all of them.

    By hand, because torch's AveragedModel copies whole modules (a frozen backbone too), in their own precision.

    Args:
        parameters: by name.
        decay: Decay of the average, once it has warmed up.
        begun: the steps since which parameters are trained, where that is not 0.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float, begun: Mapping[str, int] | None = None) -> None:
        self._parameters = dict(parameters)
        self._decay = decay
        self._average = {name: tensor.detach().float().clone() for name, tensor in parameters.items()}
        self._groups: dict[int, list[str]] = {}
        for name in parameters:
            self._groups.setdefault((begun or {}).get(name, 0), []).append(name)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step` (from 0)."""
        for begun, names in self._groups.items():
            # Held down in the first steps: else the average would consist of the initial weights for a long time.
            decay = min(self._decay, (1 + step - begun) / (10 + step - begun))
            weights = [self._parameters[name] for name in names]
            if any(weight.dtype != torch.float32 for weight in weights):
                weights = [weight.float() for weight in weights]
            torch._foreach_lerp_([self._average[name] for name in names], weights, 1.0 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """The averages themselves, by parameter name (not copies)."""
        return dict(self._average)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set averages, as `tensors` gave them. Raises `ModelError` where names or shapes differ."""
        averages = {name: average for name, average in self._average.items() if name in tensors}
        copy_tensors(tensors, averages, "the averaged weights")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the parameters for the duration of a block, then the weights back, bit by bit."""
        kept = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        try:
            _copy_all(list(self._parameters.values()), list(self._average.values()))
            yield
        finally:
            _copy_all(list(self._parameters.values()), list(kept.values()))


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
