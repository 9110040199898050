"""Data-parallel training in several processes, as started by torchrun."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from sememe.errors import RecipeError

_BUCKET_ELEMENTS = 16 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Which of how many processes this one is, and on which device it trains."""

    rank: int = 0
    num_ranks: int = 1
    device: torch.device
    control: dist.ProcessGroup | None = None
    """A group on the CPU, for decisions that all ranks must share; None for a single process."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace each gradient by its mean over the ranks; a parameter that got none counts as zero."""
        if self.num_ranks == 1:
            return
        for bucket in _list_buckets(parameters):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            flat /= self.num_ranks
            pieces = flat.split([gradient.numel() for gradient in gradients])
            for parameter, gradient, piece in zip(bucket, gradients, pieces, strict=True):
                parameter.grad = gradient.copy_(piece.view(gradient.shape))

    def share_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Give all ranks the main rank's tensors, in place."""
        if self.num_ranks == 1:
            return
        for name in sorted(tensors):
            values = tensors[name].detach().contiguous()
            dist.broadcast(values, src=0)
            with torch.no_grad():
                tensors[name].copy_(values)

    def share(self, values: Sequence[float]) -> list[float]:
        """The main rank's numbers, on all ranks."""
        if self.num_ranks == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(tensor, src=0, group=self.control)
        return [float(value) for value in tensor]

    def reduce(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> list[float]:
        """Sums (or another reduction) of numbers over the ranks, on all ranks."""
        if self.num_ranks == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=operation, group=self.control)
        return [float(value) for value in tensor]


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of a setting: "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecipeError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"device {name} was asked for, but torch sees no CUDA device here; use device=auto or cpu")
    if name == "cuda":
        device = torch.device("cuda", local_rank)
    return device


@contextmanager
def open_distribution(device_name: str) -> Iterator[Distribution]:
    """Join the other processes if torchrun started this one, and leave them at the end of the block."""
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if num_ranks == 1:
        yield Distribution(device=choose_device(device_name))
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    device = choose_device(device_name, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    was_joined = dist.is_initialized()
    if not was_joined:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
    try:
        yield Distribution(rank=rank, num_ranks=num_ranks, device=device, control=dist.new_group(backend="gloo"))
    finally:
        if not was_joined:
            dist.destroy_process_group()


def _list_buckets(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    buckets: dict[torch.dtype, list[list[Tensor]]] = {}
    for parameter in parameters:
        of_kind = buckets.setdefault(parameter.dtype, [[]])
        if of_kind[-1] and sum(p.numel() for p in of_kind[-1]) + parameter.numel() > _BUCKET_ELEMENTS:
            of_kind.append([])
        of_kind[-1].append(parameter)
    return [bucket for of_kind in buckets.values() for bucket in of_kind]
