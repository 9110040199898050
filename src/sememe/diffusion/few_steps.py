"""Few steps that each stand for several of a teacher (arXiv 2202.00512)."""

import torch
from diffusers import SchedulerMixin

from sememe.diffusion.denoise import Predict, Stepper, denoise
from sememe.diffusion.guidance import Guidance, GuidanceSchedule, VariantT
from sememe.diffusion.objectives import PredictionType, Samples, prediction_of
from sememe.errors import RecipeError


class FewSteps:
    """The steps of a sampler, each divided into equally many parts, which are a teacher's steps.

    Args:
        scheduler: A diffusers scheduler of the first order, whose steps use nothing of the steps before.
        num_steps: Steps.
        num_parts: Parts of a step.

    Raises:
        RecipeError: The scheduler's steps do not begin where every so many of its smaller ones begin.
    """

    def __init__(self, scheduler: SchedulerMixin, num_steps: int, num_parts: int) -> None:
        prediction = prediction_of(scheduler)
        assert prediction is not None, f"no path for prediction_type {scheduler.config.get('prediction_type')}"
        self.prediction: PredictionType = prediction
        self.num_steps, self._num_parts, self._scheduler = num_steps, num_parts, scheduler
        scheduler.set_timesteps(num_steps * num_parts)
        parts = scheduler.timesteps[::num_parts].clone()
        scheduler.set_timesteps(num_steps)
        self.timesteps = scheduler.timesteps.clone()
        # Whole timesteps may be rounded in two ways.
        if len(parts) != num_steps or bool(((parts - self.timesteps).abs() > 1).any()):
            raise RecipeError(
                f"{num_steps} steps of {type(scheduler).__name__} do not begin where steps of {num_steps * num_parts} "
                "begin; use a scheduler with trailing timesteps, and numbers of steps that divide 1000"
            )

    def follow(
        self,
        predict: Predict[VariantT],
        guidance: Guidance[VariantT] | GuidanceSchedule[VariantT],
        noisy: Samples,
        place: int,
    ) -> Samples:
        """The latents at the end of a step, to which a teacher leads by the parts of the step."""
        return denoise(
            predict,
            self._scheduler,
            noisy,
            guidance,
            self._num_parts,
            prediction=self.prediction,
            set_timesteps=lambda _, num_parts, device: self._begin(num_parts, place, device),
        )

    def find_prediction(self, noisy: Samples, end: Samples, place: int) -> Samples:
        """The prediction that leads from the beginning of a step to its end at once.

        A step of the first order is linear in latents and prediction, and tells its two factors.
        """
        kept = self.move(torch.zeros_like(noisy), noisy, place)
        factor = self.move(torch.ones_like(noisy), torch.zeros_like(noisy), place)
        return (end - kept) / factor

    def move(self, predicted: Samples, noisy: Samples, place: int) -> Samples:
        """The latents at the end of a step that a prediction leads to at once."""
        self._begin(1, place, noisy.device)
        return Stepper(self._scheduler, None).step(predicted, self._scheduler.timesteps[0], noisy)

    def _begin(self, num_parts: int, place: int, device: torch.device) -> None:
        """Set the scheduler to the parts of one step."""
        scheduler = self._scheduler
        scheduler.set_timesteps(self.num_steps * num_parts, device=device)
        scheduler.timesteps = scheduler.timesteps[place * num_parts : (place + 1) * num_parts]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(place * num_parts)
