"""Weights that are spread over the processes of a run, by torch's `fully_shard`.

A module is sharded in units, whose weights are gathered while they compute: its blocks (the members of its outermost
`ModuleList`s) and the large layers outside of them. A process holds some rows of each weight of a unit, and of its
gradient, moments and average. Everything else is complete on every process.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sememe.errors import RecipeError
from sememe.training.process import Distribution
from sememe.training.stage import Stage

_LARGE_LAYER = 1 << 20
"""Numbers in a layer outside of the blocks from which on it is a unit."""

_NEWEST_METHOD = "set_reduce_scatter_unused_params"
"""What the oldest torch that can shard a run has and those before it have not."""


def choose_shard(shard: int, num_ranks: int) -> int:
    """The number of processes that hold one copy of the weights together.

    Args:
        shard: As in `TrainingConfig.shard`.
        num_ranks: Processes of the run.

    Raises:
        RecipeError: The processes cannot be divided into groups of that size, or torch is too old to shard.
    """
    size = num_ranks if shard == -1 else shard
    if size > 1 and not hasattr(FSDPModule, _NEWEST_METHOD):
        raise RecipeError(
            f"expected torch 2.13 or newer for training.shard={shard}, got torch {torch.__version__}; install a newer "
            "one, or give training.shard=1"
        )
    if num_ranks % size:
        raise RecipeError(
            f"expected training.shard to divide the number of processes, {num_ranks}, got {shard}; start the run by "
            f"torchrun with a multiple of {shard} processes, or give training.shard=-1 for all processes"
        )
    return size


def find_units(module: nn.Module) -> dict[str, nn.Module]:
    """The parts of a module that are sharded as units, by their path."""
    units = {
        f"{path}.{name}" if path else name: block
        for path, each in module.named_modules()
        if isinstance(each, nn.ModuleList)
        for name, block in each.named_children()
        if any(True for _ in block.parameters())
        and not any(isinstance(outer, nn.ModuleList) for outer in _list_outer(module, path))
    }
    inside = {id(part) for block in units.values() for part in block.modules()}
    for path, each in module.named_modules():
        size = sum(parameter.numel() for parameter in each.parameters(recurse=False))
        if size >= _LARGE_LAYER and id(each) not in inside and not list(each.children()) and path:
            units[path] = each
    return units


def _list_outer(module: nn.Module, path: str) -> list[nn.Module]:
    """The modules that contain a part."""
    names = path.split(".")
    return [module.get_submodule(".".join(names[:count])) for count in range(len(names))]


class Sharding:
    """Places the modules of a run on its device, equal on all processes, and distributes weights and tokens.

    Args:
        stage: Stage with the modules.
        distribution: The processes.
        shard: Number of processes that hold one copy of the weights together.
    """

    def __init__(self, stage: Stage, distribution: Distribution, shard: int) -> None:
        modules = stage.modules()
        self._modules = nn.ModuleDict(modules)
        self._distribution = distribution
        self._reached: set[str] = set()
        self._watched: set[str] = set()
        if max(shard, distribution.context) > 1:
            separate(modules.values())
        if distribution.context > 1:
            share_stage_tokens(stage, distribution)
        if shard > 1:
            sizes = (distribution.num_ranks // shard, shard)
            mesh = init_device_mesh(distribution.device.type, sizes, mesh_dim_names=("replicate", "shard"))
            for name in stage.always_run():
                self._shard(name, modules[name], mesh)
        for module in modules.values():
            module.to(distribution.device)
        distribution.share_weights(tensor for tensor in _list_tensors(self._modules) if not is_sharded(tensor))

    def _shard(self, name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        units, device = find_units(module), self._distribution.device
        for path, unit in units.items():
            tensors = _list_tensors(unit)
            # One unit after another: a device may be too small for all of them.
            for tensor in tensors:
                tensor.data = tensor.data.to(device).contiguous()
            self._distribution.share_weights(tensors)
            self._add_unit(unit, mesh, {each for each in unit.parameters() if not each.ndim})
            unit.register_forward_pre_hook(self._watch(f"{name}.{path}"))
        # Holds no weights: torch needs it for the order of units.
        kept = {parameter for parameter in module.parameters() if not is_sharded(parameter)}
        self._add_unit(module, mesh, kept)
        for method in getattr(module, "forward_methods", ()):
            register_fsdp_forward_method(module, method)

    def _add_unit(self, unit: nn.Module, mesh: DeviceMesh, whole: set[nn.Parameter]) -> None:
        sharded = fully_shard(unit, mesh=mesh, ignored_params=whole)
        # Sums instead of means: the loop divides once by the weight of all samples.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
        # Shares may use different parts of a unit, but all processes must exchange the same tensors.
        sharded.set_reduce_scatter_unused_params(True, recurse=False)

    def _watch(self, prefix: str) -> Callable[..., None]:
        """A hook that notes which parameters of a unit get gradients, because torch puts zeros where there is none."""

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def watch(unit: nn.Module, _inputs: Any) -> None:
            for key, parameter in unit.named_parameters(prefix):
                if parameter.requires_grad and key not in self._watched:
                    self._watched.add(key)
                    parameter.register_post_accumulate_grad_hook(lambda _, key=key: self._reached.add(key))

        return watch

    def take_reached(self, parameters: Mapping[str, Tensor]) -> set[str]:
        """The names of those parameters that got a gradient on this process since the last call."""
        reached = {
            name
            for name, parameter in parameters.items()
            if (name in self._reached if is_sharded(parameter) else parameter.grad is not None)
        }
        self._reached.clear()
        return reached

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Gather complete weights into the main process's modules, on the CPU, for the duration of a block.

        All processes must enter the block; the others' modules stay as they are.
        """
        places: list[tuple[nn.Module, str, Any]] = [
            (module, name, parameter)
            for module in self._modules.modules()
            for name, parameter in module._parameters.items()
            if isinstance(parameter, DTensor)
        ]
        whole: dict[int, nn.Parameter] = {}
        for _, _, parameter in places:
            if id(parameter) not in whole:
                values = parameter.detach().full_tensor()
                if self._distribution.is_main:
                    whole[id(parameter)] = nn.Parameter(values.cpu(), requires_grad=parameter.requires_grad)
        if not self._distribution.is_main:
            yield
            return
        units = [module for module in self._modules.modules() if isinstance(module, FSDPModule)]
        classes = [type(unit) for unit in units]
        try:
            for module, name, parameter in places:
                module._parameters[name] = whole[id(parameter)]
            for unit, made in zip(units, classes, strict=True):
                # Files record the original class, not torch's derived one.
                unit.__class__ = made.__bases__[1]
            yield
        finally:
            for unit, made in zip(units, classes, strict=True):
                unit.__class__ = made
            for module, name, parameter in places:
                module._parameters[name] = parameter


def share_stage_tokens(stage: Stage, distribution: Distribution) -> None:
    """Have the processes that compute a share together share the tokens of a stage's networks.

    Args:
        stage: Stage, whose modules share nothing with each other.
        distribution: The processes.
    """
    from sememe.compute.context_parallel import MESH_NAMES, share_tokens  # here, because it loads diffusers

    context = distribution.context
    assert stage.split_by_tokens(), f"the networks of the stage {stage.name} do not share tokens among processes"
    # Not a dimension of the mesh of weights: they may also be sharded over processes that split tokens.
    sizes = (distribution.num_ranks // context, 1, context)
    groups = init_device_mesh(distribution.device.type, sizes, mesh_dim_names=MESH_NAMES)
    for name in stage.split_by_tokens():
        share_tokens(stage.modules()[name], groups)


def separate(modules: Iterable[nn.Module]) -> None:
    """Give modules copies of what they share with earlier ones, in place, because a unit cannot share its parts."""
    seen: set[int] = set()
    for module in modules:
        # A module may share parts with itself.
        own = {id(part) for part in (*module.modules(), *module.parameters())}
        for part in module.modules():
            for name, child in part.named_children():
                if id(child) in seen:
                    setattr(part, name, deepcopy(child))
            for name, parameter in part.named_parameters(recurse=False):
                if id(parameter) in seen:
                    copied = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
                    setattr(part, name, copied)
        seen |= own


def _list_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only some rows of a tensor."""
    return isinstance(tensor, DTensor)


def take_rows(tensor: Tensor) -> Tensor:
    """The rows that this process holds, in the same memory; all of a tensor that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather(tensor: Tensor) -> Tensor:
    """The complete tensor. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a tensor that every process has in the way that another one is sharded."""
    if not isinstance(like, DTensor):
        return tensor
    device = like.to_local().device
    return distribute_tensor(tensor.to(device), like.device_mesh, like.placements, src_data_rank=None)


def divide_and_clip(parameters: Sequence[Tensor], divisor: Tensor, limit: float) -> Tensor:
    """Divide gradients, and then scale them so that their norm is at most `limit`, in place.

    Args:
        parameters: Parameters with gradients, or without one.
        divisor: Scalar.
        limit: Largest norm of all gradients together; 0 for no limit.

    Returns:
        The norm after the division and before the clipping.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_div_([take_rows(gradient) for gradient in gradients], divisor)
    whole = [gradient for gradient in gradients if not is_sharded(gradient)]
    spread = [gradient for gradient in gradients if is_sharded(gradient)]
    norm = get_total_norm(whole)
    if spread:
        norm = torch.linalg.vector_norm(torch.stack([norm.to(divisor.device), gather(get_total_norm(spread))]))
    if limit:
        for kind in (False, True):
            clip_grads_with_norm_([each for each in parameters if is_sharded(each) == kind], limit, norm)
    return norm


def count_kept(module: nn.Module, shard: int) -> dict[str, int]:
    """The numbers that one process keeps of each parameter of a module that is sharded, by name."""
    units = tuple(f"{path}." for path in find_units(module)) if shard > 1 else ()
    counts = {name: parameter.numel() for name, parameter in module.named_parameters()}
    for name, parameter in module.named_parameters():
        if name.startswith(units) and parameter.ndim:
            counts[name] = -(-parameter.shape[0] // shard) * parameter[:1].numel()
    return counts
