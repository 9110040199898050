"""Optimisers with a state of named tensors, and the moving average of the weights."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from sememe.errors import ModelError, RecipeError
from sememe.training.config import PhaseConfig, TrainingConfig
from sememe.training.muon import Muon
from sememe.training.sharding import is_sharded, spread_like, take_rows

_MOMENTUM = 0.95
"""Of Muon."""
_NOT_HIDDEN = ("embed", "proj_out", "head")
"""What the names of first and last layers contain, whose matrices Muon does not train."""


class WeightAverage:
    """An exponential moving average of parameters, in float32, updated by a few calls for all of them.

    Our own, because torch's AveragedModel copies whole modules (also a frozen backbone), in their own precision.

    Args:
        parameters: Parameters by name.
        decay: Decay of the average, once it has warmed up.
        begun: First step of training of a parameter, by name, if not 0.
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
        """Update the averages with the weights after step number `step` (from 0)."""
        for begun, names in self._groups.items():
            # Smaller in the first steps, or the initial weights would dominate the average for a long time.
            decay = min(self._decay, (1 + step - begun) / (10 + step - begun))
            weights = [take_rows(self._parameters[name]) for name in names]
            if any(weight.dtype != torch.float32 for weight in weights):
                weights = [weight.float() for weight in weights]
            torch._foreach_lerp_([take_rows(self._average[name]) for name in names], weights, 1.0 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """The averages themselves, by parameter name (not copies)."""
        return dict(self._average)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the averages that `tensors` returned, as far as they are there. Raises `ModelError` if shapes differ."""
        averages = {name: average for name, average in self._average.items() if name in tensors}
        _copy_named(tensors, averages, "the averaged weights")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the parameters for the duration of a block, then restore the weights, bit for bit."""
        with _put_aside(self._parameters.values()):
            _copy_all(list(self._parameters.values()), list(self._average.values()))
            yield


@contextmanager
def _put_aside(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restore the values that tensors had before a block after it, bit for bit."""
    places = list(tensors)
    kept = [tensor.detach().clone() for tensor in places]
    try:
        yield
    finally:
        _copy_all(places, kept)


@torch.no_grad()
def _copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


@torch.no_grad()
def copy_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor], what: str) -> None:
    """Copy whole tensors by name, to sharded ones too. Raises `ModelError`, before anything is changed, if they differ
    in names or shapes.
    """
    missing, extra = sorted(target.keys() - source.keys()), sorted(source.keys() - target.keys())
    if missing or extra:
        raise ModelError(
            f"{what} must hold the {len(target)} tensors of the model, but {_list_names('lacks', missing)}"
            f"{' and ' if missing and extra else ''}{_list_names('has also', extra)}; use those of the same model"
        )
    _copy_named(source, target, what)


def _copy_named(source: Mapping[str, Tensor], target: Mapping[str, Tensor], what: str) -> None:
    for name, tensor in target.items():
        if tensor.shape != source[name].shape:
            raise ModelError(
                f"{what}: {name} must have shape {tuple(tensor.shape)}, got {tuple(source[name].shape)}; "
                "use those of the same model"
            )
    for name, tensor in target.items():
        tensor.copy_(spread_like(source[name], tensor))


@contextmanager
def replaced(target: Mapping[str, Tensor], source: Mapping[str, Tensor], what: str) -> Iterator[None]:
    """Copy tensors as `copy_tensors` does for the duration of a block, then restore the previous values, bit for
    bit."""
    with _put_aside(target.values()):
        copy_tensors(source, target, what)
        yield


def _list_names(verb: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    return f"{verb} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class ParameterSplit:
    """Names of the trained parameters by how they are optimised."""

    decayed: tuple[str, ...]
    plain: tuple[str, ...]
    """One-dimensional parameters and embeddings: no weight decay."""
    hidden: tuple[str, ...]
    """Matrices that Muon trains; empty for AdamW."""


def trained_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The parameters with `requires_grad` as "module.parameter"; a shared one has the name of its first module.

    Raises `RecipeError` where there is none.
    """
    # As one module, for which torch lists each shared parameter once.
    named = nn.ModuleDict(modules).named_parameters()
    parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
    if not parameters:
        raise RecipeError("the stage has no parameter to train; set requires_grad on what is to be trained")
    return parameters


def tracked_tensors(modules: Mapping[str, nn.Module], names: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors that a checkpoint keeps, each once under the name of the first module that has it.

    These are the parameters that are trained now or are among `names`, and buffers that belong to the modules' state.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in nn.ModuleDict(modules).state_dict(keep_vars=True).items():
        is_kept = not isinstance(value, nn.Parameter) or value.requires_grad or name in names
        if isinstance(value, Tensor) and is_kept and id(value) not in seen:
            tensors[name] = value
        seen.add(id(value))
    return tensors


def split_parameters(modules: Mapping[str, nn.Module], config: TrainingConfig) -> ParameterSplit:
    """Decide for each trained parameter how it is optimised."""
    embeddings = {
        f"{prefix}.{path}.weight" if path else f"{prefix}.weight"
        for prefix, module in modules.items()
        for path, child in module.named_modules()
        if isinstance(child, nn.Embedding | nn.EmbeddingBag)
    }
    decayed, plain, hidden = [], [], []
    for name, parameter in trained_parameters(modules).items():
        if name in embeddings or parameter.ndim < 2:
            plain.append(name)
        elif config.optimizer == "muon" and parameter.ndim == 2 and not any(part in name for part in _NOT_HIDDEN):
            hidden.append(name)
        else:
            decayed.append(name)
    return ParameterSplit(decayed=tuple(decayed), plain=tuple(plain), hidden=tuple(hidden))


class NamedOptimizer:
    """One or two torch optimisers over named parameters, stepped together.

    All follow one learning rate, times the factors that the phase (by default the first) gives to names. The state is a
    flat mapping of "parameter/quantity" to tensors, so that it can be kept in safetensors.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], config: TrainingConfig, phase: PhaseConfig | None = None
    ) -> None:
        phase = phase or config.list_phases()[0]
        self._parameters = trained_parameters(modules)
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._learning_rate, self._factors = phase.learning_rate, phase.learning_rate_factors
        for pattern in self._factors:
            if not any(fnmatchcase(name, pattern) for name in self._parameters):
                raise RecipeError(f"learning_rate_factors: no trained parameter matches {pattern!r}; try *{pattern}*")
        split = split_parameters(modules, config)
        if config.optimizer == "muon" and not split.hidden:
            raise RecipeError("optimizer muon needs hidden matrices, but the stage has none; use optimizer adamw")
        self._optimizers: list[Optimizer] = []
        if split.decayed or split.plain:
            self._optimizers.append(self._build_adamw(split, config))
        if split.hidden:
            decay = config.weight_decay
            groups = self._group(split.hidden)
            self._optimizers.append(Muon(groups, lr=self._learning_rate, momentum=_MOMENTUM, weight_decay=decay))

    def _build_adamw(self, split: ParameterSplit, config: TrainingConfig) -> AdamW:
        groups = [
            group | {"weight_decay": decay}
            for names, decay in ((split.decayed, config.weight_decay), (split.plain, 0.0))
            for group in self._group(names)
        ]
        parameters = self._parameters.values()
        can_fuse = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
        return AdamW(groups, lr=self._learning_rate, betas=config.betas, eps=config.epsilon, fused=can_fuse or None)

    def _group(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Groups of parameters, each with one factor of the learning rate, and sharded or not."""
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name in names:
            factor = math.prod(factor for pattern, factor in self._factors.items() if fnmatchcase(name, pattern))
            groups.setdefault((factor, is_sharded(self._parameters[name])), []).append(self._parameters[name])
        return [{"params": parameters, "factor": factor} for (factor, _), parameters in groups.items()]

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate that the groups' factors multiply."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["factor"]

    def step(self) -> None:
        """Update the parameters from their gradients."""
        for optimizer in self._optimizers:
            optimizer.step()

    def clear_gradients(self) -> None:
        """Clear the gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The state as "parameter/quantity" to tensor (not copies); empty before the first step."""
        return {
            f"{self._names[id(parameter)]}/{quantity}": value
            for optimizer in self._optimizers
            for parameter, state in optimizer.state.items()
            for quantity, value in state.items()
            if isinstance(value, Tensor)
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned; that of parameters which are not trained here is not read."""
        by_name: dict[str, dict[str, Tensor]] = {}
        for key in tensors:
            name, _, quantity = key.rpartition("/")
            if name in self._parameters:
                by_name.setdefault(name, {})[quantity] = _laid_out_like(tensors[key], self._parameters[name])
        for optimizer in self._optimizers:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            states = {
                index: by_name[self._names[id(parameter)]]
                for index, parameter in enumerate(parameters)
                if self._names[id(parameter)] in by_name
            }
            optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    # Files hold contiguous tensors; a fused kernel expects moments with the strides of their parameter (channels last).
    if tensor.shape != parameter.shape:
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(spread_like(tensor, parameter))
