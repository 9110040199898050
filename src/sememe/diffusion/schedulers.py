"""What is asked of the schedulers of diffusers, whatever their class."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Scheduler(Protocol):
    """Divides the way from noise to clean latents into steps, and takes them.

    Attributes:
        timesteps: Timestep at which each step begins, (step,), from noise to clean.
    """

    timesteps: Tensor

    @property
    def config(self) -> Mapping[str, Any]:
        """Arguments of its constructor."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a prediction, its timestep and the latents, and return the latents after the step."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Set the timesteps of so many steps."""


@runtime_checkable
class NoiseScheduler(Scheduler, Protocol):
    """A scheduler of a noise schedule, which also adds noise.

    Attributes:
        alphas_cumprod: Square of the weight of the clean latents at each timestep, (timestep,).
    """

    alphas_cumprod: Tensor

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return clean latents with the noise of timesteps."""


@runtime_checkable
class FlowScheduler(Scheduler, Protocol):
    """A scheduler for flow matching.

    Attributes:
        sigmas: Noise level at which each step begins, and that at which the last one ends, (step + 1,).
    """

    sigmas: Tensor
