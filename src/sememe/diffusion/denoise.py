"""The denoising loop. There is one."""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch

from sememe.diffusion.guidance import Batching, Guidance, GuidanceRow, Variant, combine
from sememe.errors import InputError


@runtime_checkable
class Predict(Protocol):
    """Predicts for one batch of latents under one or several variants of the conditions."""

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, variants: tuple[Variant, ...]) -> torch.Tensor:
        """Predicts the velocity.

        Args:
            latents: (batch, ...), noisy.
            timestep: a scalar tensor in [0, 1000].
            variants: the conditions to predict under.

        Returns:
            (variant, batch, ...), in the order of `variants`.
        """


StepCallback = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]


@torch.no_grad()
def denoise(
    predict: Predict,
    scheduler: Any,
    latents: torch.Tensor,
    guidance: Guidance,
    num_inference_steps: int,
    *,
    batching: Batching = "sequential",
    generator: torch.Generator | list[torch.Generator] | None = None,
    on_step_end: StepCallback | None = None,
) -> torch.Tensor:
    """Turns noise into clean latents.

    Args:
        predict: predicts the velocity under variants of the conditions.
        scheduler: a diffusers scheduler for flow matching.
        latents: (batch, ...), noise of unit variance.
        guidance: which predictions are summed, with which weights.
        num_inference_steps: steps of the scheduler.
        batching: whether variants that allow it share a forward; changes results by rounding only.
        generator: for schedulers that draw noise.
        on_step_end: is told the step, its timestep and the latents, and may return other latents.

    Raises:
        InputError: where the scheduler is not one for flow matching, or there is no step to do.
    """
    check_scheduler(scheduler)
    if num_inference_steps < 1:
        raise InputError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    scheduler.set_timesteps(num_inference_steps, device=latents.device)
    extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    latents = latents.float()
    groups = guidance.groups(batching)
    for step, timestep in enumerate(scheduler.timesteps):
        rows: list[GuidanceRow] = []
        predictions: list[torch.Tensor] = []
        for group in groups:
            rows.extend(group)
            predictions.extend(predict(latents, timestep, tuple(row.variant for row in group)).unbind(0))
        velocity = combine(rows, predictions)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False, **extra)[0]
        if on_step_end is not None:
            replaced = on_step_end(step, timestep, latents)
            latents = latents if replaced is None else replaced
    return latents


def check_scheduler(scheduler: Any) -> None:
    """Refuses schedulers that would take a velocity for something else.

    Raises:
        InputError: names what was given.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction":
        return
    raise InputError(
        f"expected a scheduler for flow matching (FlowMatch..., or prediction_type='flow_prediction' as UniPC has), "
        f"got {name} with prediction_type={config.get('prediction_type')!r}"
    )
