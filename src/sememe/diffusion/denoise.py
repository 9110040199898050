"""The denoising loop. There is one."""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float, Num

from sememe.diffusion.guidance import (
    Guidance,
    GuidanceRow,
    GuidanceSchedule,
    GuidanceVariant,
    VariantT,
    combine,
)
from sememe.diffusion.objectives import PredictionType, Samples, prediction_of
from sememe.errors import InputError
from sememe.records import Batching

_EXPECTED: dict[PredictionType, str] = {
    "flow": "flow matching (FlowMatch..., or prediction_type='flow_prediction' as UniPC has)",
    "v": "v-prediction (prediction_type='v_prediction', such as CogVideoXDDIMScheduler)",
    "epsilon": "prediction of the noise (prediction_type='epsilon', such as DDIMScheduler)",
    "sample": "prediction of the clean sample (prediction_type='sample', such as DDIMScheduler)",
}

# Held to solutions by hand in the tests; the last line is for models that were distilled to few steps.
_SOLVERS = frozenset(
    f"{name}Scheduler"
    for name in (
        *("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "UniPCMultistep", "DPMSolverMultistep", "DDIM", "DDPM"),
        *("CogVideoXDDIM", "CogVideoXDPM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "DEISMultistep"),
        *("KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSinglestep", "PNDM", "SASolver"),
        *("LCM", "TCD", "FlowMatchLCM"),
    )
)

Timestep = Num[torch.Tensor, ""]

_VariantT_contra = TypeVar("_VariantT_contra", bound=GuidanceVariant, contravariant=True)


@runtime_checkable
class Predict(Protocol[_VariantT_contra]):
    """Predicts for one batch of latents under one or several variants of the conditions."""

    def __call__(
        self, latents: Samples, timestep: Timestep, variants: tuple[_VariantT_contra, ...]
    ) -> Float[torch.Tensor, "variant batch ..."]:
        """Predict what the path asks for, such as the velocity of flow matching.

        Args:
            latents: Noisy.
            timestep: In [0, 1000].
            variants: The conditions to predict under.

        Returns:
            Predictions in the order of `variants`.
        """


SetTimesteps = Callable[[SchedulerMixin, int, torch.device], None]
StepCallback = Callable[[int, Timestep, Samples], Samples | None]


@torch.no_grad()
def denoise(
    predict: Predict[VariantT],
    scheduler: SchedulerMixin,
    latents: Samples,
    guidance: Guidance[VariantT] | GuidanceSchedule[VariantT],
    num_inference_steps: int,
    *,
    batching: Batching = "sequential",
    prediction: PredictionType = "flow",
    generator: torch.Generator | list[torch.Generator] | None = None,
    on_step_end: StepCallback | None = None,
    is_interrupted: Callable[[], bool] = lambda: False,
    set_timesteps: SetTimesteps | None = None,
) -> Samples:
    """Turn noise into clean latents.

    Args:
        predict: Predicts for variants of the conditioning.
        scheduler: A diffusers scheduler that fits `prediction`.
        latents: Noise of unit variance.
        guidance: Which predictions are summed, with which weights; or a function that says so for a timestep.
        num_inference_steps: Steps of the scheduler.
        batching: Whether variants that allow it share a forward; changes results by rounding only.
        prediction: What `predict` predicts.
        generator: For schedulers that draw noise.
        on_step_end: Called with the step, its timestep and the latents; may return other latents.
        is_interrupted: Called before every step; True ends the loop, with the latents as they are.
        set_timesteps: Sets the scheduler's steps, given it, their number and the device; None for its own method.

    Raises:
        InputError: The scheduler does not fit the prediction or cannot take so many steps, or a step does not give
            finite latents.
    """
    check_scheduler(scheduler, prediction)
    _set_steps(scheduler, num_inference_steps, latents.device, set_timesteps)
    stepper = Stepper(scheduler, generator)
    # Schedulers whose latents grow with the noise, such as Euler's for diffusion, say what the network sees of them.
    scale = getattr(scheduler, "scale_model_input", lambda given, _: given)
    latents = latents.float() * getattr(scheduler, "init_noise_sigma", 1.0)
    for step, timestep in enumerate(scheduler.timesteps):
        if is_interrupted():
            break
        seen = scale(latents, timestep)
        current = guidance if isinstance(guidance, Guidance) else guidance(float(timestep))
        rows: list[GuidanceRow[VariantT]] = []
        predictions: list[torch.Tensor] = []
        for group in current.groups(batching):
            rows.extend(group)
            predictions.extend(predict(seen, timestep, tuple(row.variant for row in group)).unbind(0))
        latents = stepper.step(combine(rows, predictions), timestep, latents)
        if not torch.isfinite(latents).all():
            raise InputError(
                f"the latents are not finite after step {step + 1} of {len(scheduler.timesteps)}: an overflow, as "
                "float16 has them (use bfloat16 or float32), or damaged weights"
            )
        if on_step_end is not None:
            replaced = on_step_end(step, timestep, latents)
            latents = latents if replaced is None else replaced
    return latents


def check_scheduler(scheduler: SchedulerMixin, prediction: PredictionType = "flow") -> None:
    """Refuse schedulers that take a prediction for something else.

    Raises:
        InputError: Names what was given.
    """
    if not _SOLVERS & {each.__name__ for each in type(scheduler).__mro__}:
        raise InputError(f"expected one of {', '.join(sorted(_SOLVERS))}, got a {type(scheduler).__name__}")
    if scheduler.config.get("use_dynamic_shifting"):
        raise InputError(
            f"expected a scheduler whose steps do not depend on the size of the result, got {type(scheduler).__name__} "
            "with use_dynamic_shifting=True; make it with use_dynamic_shifting=False and a shift"
        )
    if prediction_of(scheduler) != prediction:
        raise InputError(
            f"expected a scheduler for {_EXPECTED[prediction]}, got {type(scheduler).__name__} with "
            f"prediction_type={scheduler.config.get('prediction_type')!r}"
        )


def _set_steps(
    scheduler: SchedulerMixin, num_inference_steps: int, device: torch.device, set_timesteps: SetTimesteps | None
) -> None:
    if num_inference_steps < 1:
        raise InputError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    try:
        if set_timesteps is None:
            scheduler.set_timesteps(num_inference_steps, device=device)
        else:
            set_timesteps(scheduler, num_inference_steps, device)
    except (ValueError, ArithmeticError, LookupError) as error:
        most, reason = scheduler.config.get("num_train_timesteps"), " ".join(str(error).split())[:120]
        raise InputError(
            f"{type(scheduler).__name__} cannot take num_inference_steps {num_inference_steps} ({reason}); ask for "
            f"another number, of at most {most}"
        ) from error


class Stepper:
    """Calls a scheduler's step with the arguments that it takes."""

    def __init__(self, scheduler: SchedulerMixin, generator: torch.Generator | list[torch.Generator] | None) -> None:
        self.scheduler = scheduler
        known = inspect.signature(scheduler.step).parameters
        self.extra: dict[str, Any] = {"generator": generator} if "generator" in known else {}
        # CogVideoX's DPM solver takes its last estimate of the clean latents and the last timestep.
        self.has_memory = "old_pred_original_sample" in known
        self.estimate: torch.Tensor | None = None
        self.last_timestep: torch.Tensor | None = None

    def step(self, predicted: Samples, timestep: Timestep, latents: Samples) -> Samples:
        """Return the latents after a step."""
        if not self.has_memory:
            return self.scheduler.step(predicted, timestep, latents, return_dict=False, **self.extra)[0]
        latents, self.estimate = self.scheduler.step(
            predicted, self.estimate, timestep, self.last_timestep, latents, return_dict=False, **self.extra
        )
        self.last_timestep = timestep
        return latents.float()
