"""What the training loop needs to know about the thing that it trains."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sememe.errors import RecipeError

Weights = Literal["raw", "ema"]


@dataclass(frozen=True, kw_only=True)
class StepLoss:
    """The loss of one batch, as a sum and the weight to divide it by.

    The loop adds sums and weights over micro-batches and ranks and divides once, so that each batch counts by its size.

    Attributes:
        total: differentiable scalar, the sum over the batch.
        num_samples: in the batch.
        weight: what `total` adds up, such as tokens; None for `num_samples`.
        metrics: means over the batch. Tensors are not read before a line is logged, so they may stay on the device.
    """

    total: Tensor
    num_samples: int
    weight: Tensor | float | None = None
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)

    @property
    def divisor(self) -> Tensor | float:
        """The weight, or the number of samples where no weight is given."""
        return self.num_samples if self.weight is None else self.weight


class Stage(ABC):
    """One thing to train: an autoencoder, a backbone, an expert.

    The stage places its modules in training or evaluation mode and freezes what is frozen (`requires_grad`), before the
    loop begins or in `enter`; the loop moves the modules of `modules()` to the device. Anything else that a stage holds
    (a frozen encoder, a cache) it moves itself, to the device that `batch` is given.

    Attributes:
        name: recorded in checkpoints; a run resumes only from checkpoints of a stage of the same name.
    """

    name: str

    @abstractmethod
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules that hold what is trained; parameters with `requires_grad` are optimised and checkpointed."""

    @abstractmethod
    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> Any:
        """Make batch number `step` (from 0; with gradient accumulation, micro-batches are counted) on `device`.

        Must depend on nothing but the phase, `step` and `generator` (on the CPU, seeded from the run's seed, the step
        and the rank): a resumed run then repeats nothing and skips nothing. Runs without gradients, and in a thread of
        its own where batches are prefetched; never ahead of the phase.
        """

    @abstractmethod
    def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
        """The loss of a batch; all its randomness comes from `generator`, which is on the training device."""

    @abstractmethod
    def export(self, folder: Path, weights: Weights) -> None:
        """Write the loadable model folder from the modules as they are now.

        The caller has put the weights into the modules; `weights` says which they are, to be recorded.
        """

    def enter(self, phase: str) -> None:
        """Set what is trained, and on what, in the phase of that name; may be called more than once.

        Raises `RecipeError` for a phase that the stage does not have; by default all but "main".
        """
        if phase != "main":
            raise RecipeError(f"the stage {self.name} has no phase {phase!r}; leave out training.phases")

    def state(self) -> Mapping[str, Tensor]:
        """Tensors beside those of the modules that a checkpoint keeps, such as running statistics; changed in place."""
        return {}
