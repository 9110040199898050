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

    def sum_gradients(self, parameters: Sequence[Tensor], weight: Tensor) -> None:
        """Replace each gradient, and the weight of the loss, by its sum over the ranks, in place.

        A parameter without a gradient on any rank keeps none, so that weight decay leaves it alone as in one process.
        By hand, because DistributedDataParallel takes equal means and wraps `forward` only; stages call other methods.
        """
        if self.num_ranks == 1:
            return
        counts = self.reduce([float(parameter.grad is not None) for parameter in parameters])
        reached = [parameter for parameter, count in zip(parameters, counts, strict=True) if count]
        for parameter in reached:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = gradient.contiguous()
        summed = [weight, *(parameter.grad for parameter in reached if parameter.grad is not None)]
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in summed]:
            work.wait()

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
