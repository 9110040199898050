"""The training process: its ranks and device, stop requests, and its memory allocator."""

import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.tensor import DTensor

from sememe.compute.devices import choose_device, is_fast_in_bfloat16
from sememe.errors import RecipeError
from sememe.training.config import TrainingConfig

# Values of these options in malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of returning it to the system; call it before the first tensor.

    glibc maps every large block from the system and unmaps it when it is freed. Training on a CPU allocates and frees
    hundreds of large tensors in each step, and the system has to clear every page again each time. How much that costs
    depends on the machine and the network (`docs/log.md`). GPUs and other systems have other allocators. The process
    then keeps its peak memory.

    Returns:
        Whether this system's allocator has the setting; without glibc nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Never map single blocks, and never trim the heap.
    return bool(set_option(_MMAP_MAX, 0)) and bool(set_option(_TRIM_THRESHOLD, _NEVER))


class StopRequest:
    """Whether a run was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    @property
    def is_made(self) -> bool:
        """Whether the run should stop after the current step."""
        return self.signal_name is not None


@contextmanager
def listen_for_stop() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one has its usual effect."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

    def receive(number: int, _frame: FrameType | None) -> None:
        request.signal_name = signal.Signals(number).name
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in previous:
        signal.signal(number, receive)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Rank, number of processes, and device of this process.

    Attributes:
        context: Processes that compute each share together; those of successive ranks.
    """

    rank: int = 0
    num_ranks: int = 1
    context: int = 1
    device: torch.device
    control: dist.ProcessGroup | None = None
    """A group on the CPU, for decisions that all ranks must share; None for a single process."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    @property
    def counts_shares(self) -> bool:
        """Whether this process is the one that counts shares, among those that compute the same ones."""
        return self.rank % self.context == 0

    def take_shares(self, num_shares: int) -> range:
        """The shares of every step that this process computes.

        Raises:
            RecipeError: The shares cannot be divided evenly among the processes.
        """
        num_groups, group = self.num_ranks // self.context, self.rank // self.context
        if num_shares % num_groups:
            divided = f" divided by training.context={self.context}" if self.context > 1 else ""
            raise RecipeError(
                f"expected training.num_shares to be a multiple of the number of processes{divided}, {num_groups}, got "
                f"{num_shares}; set training.num_shares={num_groups}, and the batch size to that of a share"
            )
        count = num_shares // num_groups
        return range(group * count, (group + 1) * count)

    def sum_gradients(self, parameters: Mapping[str, Tensor], reached: Collection[str], weight: Tensor) -> None:
        """Replace each gradient, and the weight of the loss, by its sum over the ranks, in place.

        A parameter without a gradient on any rank gets none, so that weight decay skips it as in one process. Our own,
        because DistributedDataParallel averages ranks equally and wraps only `forward`; stages call other methods.

        Args:
            parameters: Parameters by name. Gradients of sharded ones are already summed.
            reached: Names of those that have a gradient on this rank.
            weight: Scalar.
        """
        if self.num_ranks == 1:
            return
        counts = self.reduce([float(name in reached) for name in parameters])
        summed = [weight]
        for parameter, count in zip(parameters.values(), counts, strict=True):
            if not count:
                parameter.grad = None
            elif not isinstance(parameter, DTensor):
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = gradient.contiguous()
                summed.append(parameter.grad)
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in summed]:
            work.wait()

    def share_weights(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks the main rank's tensors, in place. The order must be the same on all ranks."""
        if self.num_ranks == 1:
            return
        for tensor in tensors:
            values = tensor.detach().contiguous()
            dist.broadcast(values, src=0)
            with torch.no_grad():
                tensor.copy_(values)

    def gather_texts(self, text: str) -> list[str]:
        """A text of each rank, in their order, on all ranks."""
        if self.num_ranks == 1:
            return [text]
        content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        (length,) = self.reduce([len(content)], dist.ReduceOp.MAX)
        padded = torch.nn.functional.pad(content, (0, int(length) - len(content)))
        gathered = [torch.empty_like(padded) for _ in range(self.num_ranks)]
        dist.all_gather(gathered, padded, group=self.control)
        return [bytes(each.tolist()).rstrip(b"\0").decode() for each in gathered]

    def join_names(self, names: Iterable[str]) -> list[str]:
        """The names that any rank has, sorted, on all ranks."""
        texts = self.gather_texts(json.dumps(sorted(set(names))))
        return sorted({name for text in texts for name in json.loads(text)})

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


def _rank_device(name: str, local_rank: int) -> torch.device:
    device = choose_device(name)
    return torch.device("cuda", local_rank) if device.type == "cuda" and device.index is None else device


@contextmanager
def open_distribution(device_name: str, context: int = 1) -> Iterator[Distribution]:
    """Join the other processes if torchrun started this one, and leave them at the end of the block.

    Args:
        device_name: As in `TrainingConfig.device`.
        context: As in `TrainingConfig.context`.

    Raises:
        RecipeError: The processes cannot be divided into groups of that size.
    """
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if num_ranks % context:
        raise RecipeError(
            f"expected training.context to divide the number of processes, {num_ranks}, got {context}; start the run "
            f"by torchrun with a multiple of {context} processes, or give training.context=1"
        )
    if num_ranks == 1:
        yield Distribution(device=_rank_device(device_name, 0))
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    device = _rank_device(device_name, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    was_joined = dist.is_initialized()
    if not was_joined:
        # Numbers of tokens are exchanged on the CPU, to avoid synchronising with a GPU.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        control = dist.new_group(backend="gloo")
        yield Distribution(rank=rank, num_ranks=num_ranks, context=context, device=device, control=control)
    except Exception as error:
        get_error_handler().record_exception(error)  # for torchrun to tell which process failed first, and why
        raise
    finally:
        if not was_joined:
            dist.destroy_process_group()


def meet() -> None:
    """Wait until all processes of the run are here; with one process there is nothing to wait for."""
    if dist.is_initialized():
        dist.barrier()


def list_compiled(modules: Mapping[str, nn.Module], config: TrainingConfig) -> list[nn.Module]:
    """List the modules of a stage whose repeated blocks are to be compiled.

    Raises:
        RecipeError: Blocks are to be compiled, and there are none.
    """
    if config.compile == "none":
        return []
    able = [module for module in modules.values() if getattr(module, "_repeated_blocks", None)]
    if not able:
        raise RecipeError(
            "compile=blocks has no effect: no module of the stage names repeated blocks; use compile=none"
        )
    return able


def checkpoint_activations(modules: Mapping[str, nn.Module], config: TrainingConfig) -> None:
    """Enable activation checkpointing in the blocks of a stage's modules, if the settings say so."""
    if not config.checkpoints_activations:
        return
    able = [module for module in modules.values() if getattr(module, "_supports_gradient_checkpointing", False)]
    if not able:
        raise RecipeError("checkpoints_activations has no effect: no module of the stage supports it; leave it out")
    for module in able:
        module.enable_gradient_checkpointing()  # type: ignore[operator]


def resolve_precision(config: TrainingConfig, device: torch.device) -> TrainingConfig:
    """Return settings with the precision that "auto" means on a device."""
    if config.precision != "auto":
        return config
    return replace(config, precision="bf16" if is_fast_in_bfloat16(device) else "fp32")


@contextmanager
def torch_settings(config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Set torch's process-wide settings for the run, and restore them and its generator afterwards."""
    num_threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    matmul_precision = torch.get_float32_matmul_precision()
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    if config.precision == "bf16" and device.type == "cuda":
        # TensorFloat-32 for what autocast leaves in float32.
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        torch.set_rng_state(random_state)
        torch.set_float32_matmul_precision(matmul_precision)
