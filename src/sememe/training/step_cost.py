"""The cost of a training step: memory and operations by a step on meta tensors, time by a few real steps."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from sememe.compute.rehearsal import track_memory
from sememe.training.config import ScheduleConfig, TrainingConfig
from sememe.training.frozen_weights import list_rounded, round_weights
from sememe.training.loop import train
from sememe.training.process import Distribution, checkpoint_activations
from sememe.training.progress import TrainingEvent, TrainingProgress
from sememe.training.sharding import separate, share_stage_tokens
from sememe.training.stage import Stage, step_generator

_NUM_TIMED = 2
"""Steps of a phase that are timed, after a first one, which takes longer."""
_MATRIX_SIZES = {"cpu": 768, "cuda": 8192}
"""Rows and columns of the matrices that are multiplied to see how fast a device is."""
_SLOW = 0.2
"""Seconds of a product that does not need to be computed again to be known."""


@dataclass(frozen=True)
class StepCost:
    """Cost of one share of a step.

    Attributes:
        activations: Peak bytes of live tensors besides weights and gradients.
        operations: Floating-point operations (additions and multiplications) of matrix products, convolutions and
            attention, forward and backward.
    """

    activations: int
    operations: int


def count_costs(stage: Stage, config: TrainingConfig) -> dict[str, StepCost]:
    """Count the cost of one share of each phase's first step, for each process that computes it, by phase.

    The stage cannot be used afterwards: its frozen weights are rounded as in a run, its tokens are split if
    `config.context` says so, and tensors that it stored have no values.

    Args:
        stage: Stage, its modules on the CPU.
        config: Settings of the run, whose precision is not "auto".

    Returns:
        The costs, without phases whose loss depends on the values of tensors.

    Raises:
        RecipeError: The stage cannot split its tokens.
    """
    round_weights(list_rounded(stage, config))
    with _pretend_processes(config.context) as distribution:
        if config.context > 1:
            separate(stage.modules().values())
            share_stage_tokens(stage, distribution)
        found = {phase.name: _count_cost(stage, config, phase.name) for phase in config.list_phases()}
    return {name: cost for name, cost in found.items() if cost is not None}


@contextmanager
def _pretend_processes(count: int) -> Iterator[Distribution]:
    """Pretend to be the first of so many processes; exchanges return what is sent."""
    if count > 1:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield Distribution(num_ranks=count, context=count, device=torch.device("cpu"))
    finally:
        if count > 1:
            dist.destroy_process_group()


def _count_cost(stage: Stage, config: TrainingConfig, phase: str) -> StepCost | None:
    stage.enter(phase)
    checkpoint_activations(stage.modules(), config)
    with torch.no_grad():
        batch: Any = stage.batch(0, step_generator(config.seed, 0, 0, "batch"), torch.device("cpu"))
    trained = [each for each in nn.ModuleDict(stage.modules()).parameters() if each.requires_grad]
    with FakeTensorMode(allow_non_fake_inputs=True):
        for parameter in trained:
            # Gradients are counted with the weights, so they are allocated before the step.
            parameter.grad = torch.zeros_like(parameter)
        try:
            with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter, track_memory() as memory:
                with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
                    result = stage.loss(batch, step_generator(config.seed, 0, 0, "loss"))
                result.total.backward()
        except RuntimeError:  # of several kinds, by what the values are asked for
            return None
        finally:
            for parameter in trained:
                parameter.grad = None
    return StepCost(activations=memory.peak_bytes, operations=counter.get_total_flops())


def _count_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _count_attention_back(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _count_attention_back,
}
"""Counts operations of attention on a CPU, which torch's counter leaves out."""


class _Enough(Exception):  # noqa: N818 (it is no error)
    """Raised when the timed steps are done."""


def time_steps(stage: Stage, config: TrainingConfig, folder: Path) -> dict[str, float]:
    """Take a few steps of every phase on this process alone, and return the seconds of one, by phase.

    They run in the training loop, with batches, optimiser and average. Blocks are not compiled, which would take
    minutes. The stage is trained by them and cannot be used afterwards.

    Args:
        stage: Stage.
        config: Settings of the run.
        folder: Empty folder.

    Raises:
        RecipeError: Loss or gradients are not finite.
    """
    count = 1 + _NUM_TIMED
    short: dict[str, Any] = {"num_steps": count, "schedule": ScheduleConfig(shape="constant")}
    phases = config.list_phases()
    if config.phases:
        short = {"phases": tuple(replace(phase, **short) for phase in config.phases)}
    config = replace(
        config,
        **short,
        compile="none",
        shard=1,
        context=1,
        max_minutes=None,
        time_decay=False,
        stop_after_minutes=None,
        log_every=1,
        trackers=(),
        validate_every=0,
        save_every=1 + count * len(phases),
        save_minutes=None,
    )
    ends: list[float] = []

    def note(event: TrainingEvent) -> None:
        if isinstance(event, TrainingProgress):
            ends.append(time.perf_counter())
        if len(ends) == count * len(phases):
            raise _Enough  # before anything is saved

    try:
        train(stage, config, folder, on_event=note)
    except _Enough:
        pass
    else:  # a signal has ended the steps
        raise KeyboardInterrupt
    firsts = ends[::count]
    return {
        phase.name: (ends[count * (place + 1) - 1] - first) / _NUM_TIMED
        for place, (phase, first) in enumerate(zip(phases, firsts, strict=True))
    }


def measure_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure a device's operations per second in matrix products, an upper bound for training."""
    size = _MATRIX_SIZES.get(device.type, 4096)
    one, other = (torch.full((size, size), 0.5, dtype=dtype, device=device) for _ in range(2))
    best = _time(lambda: one @ other)
    for _ in range(3 if best < _SLOW else 0):
        best = min(best, _time(lambda: one @ other))
    return 2 * size**3 / best


def _time(work: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    # Reading one number synchronises with the device.
    work()[0, 0].item()
    return time.perf_counter() - start
