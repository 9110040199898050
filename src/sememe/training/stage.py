"""The interface between the training loop and what it trains, and the order of batches."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from sememe.errors import RecipeError
from sememe.training.config import TrainingConfig
from sememe.training.held_out import ItemPicker
from sememe.video.sheet import SheetRow

BatchT = TypeVar("BatchT")


def derive_seed(*parts: int | str) -> int:
    """A seed between 0 and 2**63 - 1 that depends on all parts and on their order, the same on every machine."""
    digest = hashlib.sha256("/".join(f"{type(part).__name__}:{part}" for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def step_generator(
    seed: int, step: int, share: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The generator of one purpose, such as "batch" or "loss", for one share of a step."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, step, share, purpose))


def make_rng(generator: torch.Generator) -> np.random.Generator:
    """Make a NumPy generator that is seeded by torch's."""
    return np.random.Generator(np.random.PCG64(int(torch.randint(1 << 62, (1,), generator=generator))))


@dataclass(frozen=True)
class NoiseLosses:
    """The losses of samples, (sample,), and their noise levels sigma in 0..1, (sample,)."""

    losses: Tensor
    sigma: Tensor


@dataclass(frozen=True, kw_only=True)
class StepLoss:
    """The loss of one batch, as a sum and the weight to divide it by.

    The loop adds sums and weights over the shares of a step and divides once, so that each batch counts by its size.

    Attributes:
        total: Differentiable scalar, the sum over the batch.
        num_samples: Number of samples in the batch.
        weight: Number of summands of `total`, such as tokens; None for `num_samples`.
        metrics: Means over the batch. Tensors may stay on the device; they are read when a line is logged.
        by_noise: Losses of the samples by noise level, for the log; None without noise levels.
    """

    total: Tensor
    num_samples: int
    weight: Tensor | float | None = None
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    by_noise: NoiseLosses | None = None

    @classmethod
    def of_samples(
        cls,
        losses: Tensor,
        levels: Tensor,
        *,
        total: Tensor | None = None,
        weight: float | None = None,
        metrics: Mapping[str, Tensor | float] | None = None,
    ) -> "StepLoss":
        """Make the loss of samples, (sample,), at their levels of noise; the total is their sum where none is given."""
        return cls(
            total=losses.sum() if total is None else total,
            num_samples=len(losses),
            weight=weight,
            metrics=metrics or {},
            by_noise=NoiseLosses(losses, levels),
        )

    @property
    def divisor(self) -> Shaped[Tensor, ""] | float:
        """The weight, or the number of samples where no weight is given."""
        return self.num_samples if self.weight is None else self.weight


class Stage(ABC, Generic[BatchT]):
    """One thing to train: an autoencoder, a backbone, an expert; the parameter of the type is that of its batches.

    The stage sets training or evaluation mode and `requires_grad` of its modules, before the loop begins or in `enter`;
    the loop moves the modules of `modules()` to the device. The stage moves anything else (a frozen encoder, a cache)
    itself, to the device that `batch` receives.

    Attributes:
        name: Name that checkpoints record; a run resumes only from those of a stage of the same name.
        items: Draws the items of batches, for `hold_out`; None if there are no items.
    """

    name: str
    items: ItemPicker | None = None

    @abstractmethod
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules with trained parameters; those with `requires_grad` are optimised and checkpointed."""

    @abstractmethod
    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> BatchT:
        """Make the batch of a share of step number `step` (from 0) on `device`.

        Must depend only on the phase, `step` and `generator` (on the CPU, seeded from the run's seed, the step and the
        share), so that a resumed run repeats and skips nothing on any number of processes. Runs without gradients, in
        another thread if batches are prefetched, and never before its phase begins.
        """

    @abstractmethod
    def loss(self, batch: BatchT, generator: torch.Generator) -> StepLoss:
        """The loss of a batch; all its randomness comes from `generator`, which is on the training device.

        Changes to `state` and to buffers of modules are averaged over the shares of a step.
        """

    def companions(self) -> Mapping[str, Any]:
        """What is exported beside the modules, such as a tokenizer; by default there is nothing."""
        return {}

    def export(self, folder: Path) -> None:
        """Write each module with its current weights, and each companion, to the folder of its name."""
        parts: Mapping[str, Any] = {**self.modules(), **self.companions()}
        for name, part in parts.items():
            part.save_pretrained(folder / name)

    def enter(self, phase: str) -> None:
        """Set what the named phase trains, and on which data; may be called more than once.

        Raises `RecipeError` for a phase that the stage does not have; by default all but "main".
        """
        if phase != "main":
            raise RecipeError(f"the stage {self.name} has no phase {phase!r}; leave out training.phases")

    def always_run(self) -> Collection[str]:
        """Names of the modules that every batch runs, with the same blocks in the same order.

        Only these can be sharded, because processes exchange the weights of a block while they run it. By default all
        of them.
        """
        return self.modules().keys()

    def split_by_tokens(self) -> Collection[str]:
        """Names of the modules whose tokens can be split over processes, for `TrainingConfig.context`.

        Their attention is `compute.context_parallel.attend`, and every gradient flows through their results, which are
        complete on each process. By default there are none.
        """
        return ()

    def only_computed(self) -> Collection[str]:
        """Names of frozen parameters, as "module.parameter", that only `loss` reads.

        They are not exported, and not used with autocast disabled. By default there are none.
        """
        return ()

    def state(self) -> Mapping[str, Tensor]:
        """Tensors beside those of the modules that a checkpoint keeps, such as running statistics; changed in place."""
        return {}

    def hold_out(self) -> "Stage[BatchT]":
        """Hold a part of the data out of batches from now on, and return a stage over that part.

        It shares this one's modules, and is only validated. By default the part is some of the `items`.

        Raises:
            RecipeError: There is too little data to hold any out.
        """
        if self.items is None:
            raise RecipeError(f"training.validate_every has no effect on the stage {self.name}; give 0")
        other = copy(self)
        other.items = self.items.hold_out()
        return other

    def sample(self, generator: torch.Generator, device: torch.device) -> Sequence[SheetRow]:
        """Generate a few clips with the current weights, beside the true ones, for visual inspection.

        It is called in evaluation mode and without gradients, on all processes of a run, which must compute the same.
        By default there are none.

        Args:
            generator: Source of all randomness, on the CPU; the same at every call.
            device: Device of the modules.
        """
        return ()


class BatchSource:
    """Yields the batches of a stage in order: the shares of a step that this process trains on, then the next step's.

    Batches are pure functions of step and share, so the order in which they are made is free. The same ones come again
    after `training.repeat_after` steps.
    """

    def __init__(
        self,
        stage: Stage,
        config: TrainingConfig,
        *,
        shares: range,
        device: torch.device,
        start: int,
        stop: int,
    ) -> None:
        self._stage, self._config, self._shares, self._device = stage, config, shares, device
        self._next, self._stop, self._num_ahead = start * len(shares), stop * len(shares), config.prefetch_batches
        self._pool = ThreadPoolExecutor(self._num_ahead, thread_name_prefix="batch") if self._num_ahead else None
        self._ahead: dict[int, Future[Any]] = {}

    def take(self) -> Any:
        """The next batch, of the steps from `start` up to `stop`."""
        index = self._next
        assert index < self._stop, f"batch {index} was asked for, but the run has only {self._stop}"
        self._next += 1
        if self._pool is None:
            return self._make(index)
        for number in range(index, min(index + self._num_ahead + 1, self._stop)):
            if number not in self._ahead:
                self._ahead[number] = self._pool.submit(self._make, number)
        return self._ahead.pop(index).result()

    def rest(self) -> None:
        """Wait until no batch is being prefetched."""
        wait(self._ahead.values())

    def close(self) -> None:
        """Stop prefetching."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    @torch.no_grad()
    def _make(self, index: int) -> Any:
        step, place = divmod(index, len(self._shares))
        if self._config.repeat_after is not None:
            step %= self._config.repeat_after
        generator = step_generator(self._config.seed, step, self._shares[place], "batch")
        return self._stage.batch(step, generator, self._device)


Announce = Callable[[str], None]
"""Called with what is being done, in a few words for people."""


class Preparation(ABC):
    """The data and fixed networks of a run, independent of its initial weights.

    It is made from the recipe, the folders of the parts that this needs, and a function that announces what is done.
    """

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, str]:
        """Identity of the data: hashes and versions by name."""

    @abstractmethod
    def begin(self, folder: Path) -> None:
        """Write each untrained part that the run trains to its own folder."""

    @abstractmethod
    def build(self, start: Path) -> Stage:
        """Return the stage, with the weights of the parts in `start`.

        Raises:
            ModelError: A part is not whole.
            RecipeError: The settings or the data do not fit the networks.
        """
