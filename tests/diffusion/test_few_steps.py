"""A few steps that end where many of a teacher end."""

from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler

from diffusion.variants import Variant, guide
from sememe.diffusion.denoise import denoise
from sememe.diffusion.few_steps import FewSteps
from sememe.errors import RecipeError
from sememe.training.networks import make_scheduler
from sememe.training.recipes import SchedulerSettings

FLOW = make_scheduler(SchedulerSettings(kind="euler_trailing"))
V = CogVideoXDDIMScheduler(
    prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", beta_schedule="linear"
)
each_kind = pytest.mark.parametrize("scheduler", [FLOW, V], ids=["flow", "v"])


def teach(latents: torch.Tensor, timestep: torch.Tensor, variants: tuple[Variant, ...]) -> torch.Tensor:
    """A prediction that depends on latents, timestep and variant."""
    found = [(latents * ord(variant.letter) / 100).tanh() + float(timestep) / 1000 for variant in variants]
    return torch.stack(found)


@each_kind
def test_learned_predictions_lead_where_the_teacher_leads(scheduler: Any) -> None:
    """A student that has learned all predictions samples in 4 steps what its teacher samples in 8."""
    guidance, noise = guide(a=-2.0, b=3.0), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    steps = FewSteps(scheduler, 4, 2)
    learned = iter(range(4))

    def predict(latents: torch.Tensor, timestep: torch.Tensor, variants: tuple[Variant, ...]) -> torch.Tensor:
        # The loop and the steps share the scheduler, and the loop has set it already.
        place = next(learned)
        assert float(timestep) == float(steps.timesteps[place])
        kept = scheduler.timesteps
        end = steps.follow(teach, guidance, latents, place)
        found = steps.find_prediction(latents, end, place)
        scheduler.set_timesteps(4)
        assert torch.equal(scheduler.timesteps, kept)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(place)
        return found[None]

    few = denoise(predict, scheduler, noise, guide(a=1.0), 4, prediction=steps.prediction)
    many = denoise(teach, scheduler, noise, guidance, 8, prediction=steps.prediction)
    torch.testing.assert_close(few, many, rtol=1e-5, atol=1e-5)


@each_kind
def test_a_step_leads_where_its_prediction_was_found(scheduler: Any) -> None:
    steps, (begin, end) = FewSteps(scheduler, 4, 2), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for place in range(4):
        found = steps.find_prediction(begin, end, place)
        torch.testing.assert_close(steps.move(found, begin, place), end, rtol=1e-5, atol=1e-5)


def test_steps_that_do_not_lie_on_those_of_the_teacher() -> None:
    with pytest.raises(RecipeError, match="4 steps of FlowMatchEulerDiscreteScheduler do not begin where steps of 12"):
        FewSteps(FlowMatchEulerDiscreteScheduler(shift=3.0), 4, 3)
