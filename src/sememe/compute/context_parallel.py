"""Attention over sequences whose tokens several processes share (context parallelism), forward and backward.

Every process holds some tokens with all heads. For an attention the processes exchange them, so that each has all
tokens of some heads, and exchange the results back (DeepSpeed Ulysses, arXiv 2309.14509, section 3.1).
"""

from typing import Any

import torch
import torch.distributed as dist
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import (
    ContextParallelConfig,
    ContextParallelOutput,
    ParallelConfig,
)
from diffusers.models.attention_dispatch import dispatch_attention_fn
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F

MESH_NAMES = ("group", "ring", "ulysses")
"""Dimensions of the mesh of `share_tokens`: groups of processes, 1, and the processes of a group."""

Queries = Float[Tensor, "batch query head head_dim"]
Keys = Float[Tensor, "batch key head head_dim"]


def attend(processor: Any, query: Queries, key: Keys, value: Keys, mask: Tensor | None = None) -> Queries:
    """Attend on the backend of an attention processor, over all processes that share its tokens.

    Args:
        processor: Processor with the fields `_attention_backend` and `_parallel_config` of diffusers.
        query: Queries of this process's tokens.
        key: Keys of this process's tokens. Processes may differ in the numbers of their queries and keys.
        value: Values of this process's tokens.
        mask: Mask of this process's keys, in the form of the backend.
    """
    backend, config = processor._attention_backend, processor._parallel_config
    shared = None if config is None else config.context_parallel_config
    if shared is None or shared.ring_degree > 1:
        return dispatch_attention_fn(query, key, value, attn_mask=mask, backend=backend, parallel_config=config)
    return _attend_shared(query, key, value, mask, backend, shared._ulysses_mesh)


# Heads are exchanged, and not keys and values gathered, because what is kept for the way back is then a share of the
# whole for these too. diffusers' own exchange has no gradient for processes that differ in their numbers of tokens, and
# a wrong one where queries and keys differ in theirs, as those of a target that reads a reference do.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend_shared(
    query: Queries, key: Keys, value: Keys, mask: Tensor | None, backend: Any, mesh: DeviceMesh
) -> Queries:
    group, num_heads = mesh.get_group(), query.shape[2]
    num_queries, num_keys = (_gather_lengths(each, 1, group) for each in (query, key))
    if mask is not None:
        mask = _join(mask, mask.ndim - 1, num_keys, group)
    heads = dispatch_attention_fn(
        _gather_tokens(query, num_queries, group),
        _gather_tokens(key, num_keys, group),
        _gather_tokens(value, num_keys, group),
        attn_mask=mask,
        backend=backend,
    )
    return _gather_heads(heads, num_queries, group)[:, :, :num_heads]


class _Exchange(torch.autograd.Function):
    """Send consecutive pieces of a tensor to the ranks of a group, one each, and join those that come from them."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        context.way_back = received, sent, group
        result = tensor.new_empty((sum(received), *tensor.shape[1:]))
        dist.all_to_all_single(result, tensor.contiguous(), received, sent, group=group)
        return result

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return _Exchange.apply(gradients[0], *context.way_back), None, None, None


def _gather_tokens(
    features: Float[Tensor, "batch token head head_dim"], lengths: list[int], group: dist.ProcessGroup
) -> Float[Tensor, "batch all_token some_head head_dim"]:
    """Exchange some tokens of all heads for all tokens of some heads; missing heads are zeros."""
    size, own = len(lengths), features.shape[1]
    padded = F.pad(features, (0, 0, 0, -features.shape[2] % size))
    # (batch, token, rank * head, head_dim) -> (rank * token, batch, head, head_dim)
    sent = padded.unflatten(2, (size, -1)).permute(2, 1, 0, 3, 4).flatten(0, 1)
    # -> (all tokens, batch, head, head_dim), those of one rank after the other's
    received: Tensor = _Exchange.apply(sent, [own] * size, lengths, group)
    return received.transpose(0, 1)


def _gather_heads(
    features: Float[Tensor, "batch all_token some_head head_dim"], lengths: list[int], group: dist.ProcessGroup
) -> Float[Tensor, "batch token head head_dim"]:
    """Exchange all tokens of some heads for some tokens of all heads."""
    size, own = len(lengths), lengths[dist.get_rank(group)]
    received: Tensor = _Exchange.apply(features.transpose(0, 1), lengths, [own] * size, group)
    # (rank * token, batch, head, head_dim) -> (batch, token, rank * head, head_dim)
    return received.unflatten(0, (size, own)).permute(2, 1, 0, 3, 4).flatten(2, 3)


def _gather_lengths(tensor: Tensor, dim: int, group: dist.ProcessGroup) -> list[int]:
    """The lengths of the tensors of all ranks along a dimension."""
    # Where the group can, without an accelerator: a build of torch for one may run on a machine that has none.
    device = "cpu" if "cpu" in dist.get_backend_config(group) else tensor.device
    # In a rehearsal tensors have no values, but lengths do.
    with unset_fake_temporarily():
        own = torch.tensor([tensor.shape[dim]], device=device)
        lengths = [torch.empty_like(own) for _ in range(group.size())]
        dist.all_gather(lengths, own, group=group)
        return [int(length) for length in lengths]


def _join(tensor: Tensor, dim: int, lengths: list[int], group: dist.ProcessGroup) -> Tensor:
    """Join the tensors of all ranks along a dimension. Gradients come back to the own one from this process alone."""
    own, size = tensor.movedim(dim, 0), len(lengths)
    with torch.no_grad():
        received = _Exchange.apply(own.repeat(size, *[1] * (own.ndim - 1)), [len(own)] * size, lengths, group)
    parts = list(received.split(lengths))
    parts[dist.get_rank(group)] = own
    return torch.cat(parts).movedim(0, dim)


def share_tokens(network: Any, mesh: DeviceMesh) -> None:
    """Have the processes of a group share the tokens of a network, in parts whose lengths may differ.

    Each process gets the whole result, and of every gradient a part, which the sum over the group makes whole.
    `enable_parallelism` of diffusers does the same on accelerators, for parts of one length alone.

    Args:
        network: Transformer with a context-parallel plan of diffusers, whose self-attention calls `attend`.
        mesh: Mesh of all processes, with the dimensions `MESH_NAMES`.
    """
    shared = ContextParallelConfig(ulysses_degree=mesh["ulysses"].size(), ulysses_anything=True)
    config = ParallelConfig(context_parallel_config=shared)
    device = torch.device(mesh.device_type)
    config.setup(dist.get_rank(), dist.get_world_size(), device, mesh=mesh["ring", "ulysses"])
    network._parallel_config = config
    for module in network.modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = config
    plan, group = network._cp_plan, shared._ulysses_mesh.get_group()
    outputs = {path: entry.gather_dim for path, entry in plan.items() if isinstance(entry, ContextParallelOutput)}
    # What Wan's plan has for the network itself is a timestep for each token, which no stage gives; the hook for it
    # refuses every result that is not a plain tensor.
    inputs = {path: entry for path, entry in plan.items() if path and path not in outputs}
    apply_context_parallel(network, shared, inputs)
    for path, dim in outputs.items():

        def join(_module: Any, _inputs: Any, part: Tensor, dim: int = dim) -> Tensor:
            return _join(part, dim, _gather_lengths(part, dim, group), group)

        network.get_submodule(path).register_forward_hook(join)
