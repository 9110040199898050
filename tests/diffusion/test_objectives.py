"""Paths from clean latents to noise: formulas agree with those of diffusers."""

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler

from sememe.diffusion.objectives import FLOW, NoisePath, prediction_of, sample_losses, sample_sigma, shift_sigma

CLEAN, NOISE = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(0)).unbind()
SCHEDULERS = {
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "v": CogVideoXDDIMScheduler(prediction_type="v_prediction", snr_shift_scale=1.0, rescale_betas_zero_snr=True),
    "epsilon": DDIMScheduler(prediction_type="epsilon"),
    "sample": DDIMScheduler(prediction_type="sample"),
}


@pytest.mark.parametrize("prediction", SCHEDULERS)
def test_the_scheduler_says_what_is_predicted(prediction: str) -> None:
    path = NoisePath.of_scheduler(SCHEDULERS[prediction])
    assert prediction_of(SCHEDULERS[prediction]) == path.prediction == prediction


def test_flow_runs_straight_from_clean_latents_to_noise() -> None:
    levels = torch.tensor([0.0, 0.3, 1.0])
    noisy = FLOW.add_noise(CLEAN, NOISE, levels)
    assert torch.equal(noisy[0], CLEAN[0])
    assert torch.equal(noisy[2], NOISE[2])
    torch.testing.assert_close(noisy[1], 0.7 * CLEAN[1] + 0.3 * NOISE[1])
    later = FLOW.add_noise(CLEAN, NOISE, levels + 1e-2)
    torch.testing.assert_close((later - noisy) / 1e-2, FLOW.target(CLEAN, NOISE, levels), atol=1e-3, rtol=1e-3)
    assert torch.equal(FLOW.timesteps(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.0, 500.0, 1000.0]))


@pytest.mark.parametrize("prediction", ["v", "epsilon", "sample"])
def test_diffusion_adds_noise_as_its_scheduler_does(prediction: str) -> None:
    scheduler = SCHEDULERS[prediction]
    path, levels = NoisePath.of_scheduler(scheduler), torch.tensor([0.0, 0.4567, 1.0])
    timesteps = path.timesteps(levels)
    assert timesteps.tolist() == [0.0, 456.0, 999.0]
    expected = scheduler.add_noise(CLEAN, NOISE, timesteps.long())
    torch.testing.assert_close(path.add_noise(CLEAN, NOISE, levels), expected)
    target = path.target(CLEAN, NOISE, levels)
    if prediction == "v":
        torch.testing.assert_close(target, scheduler.get_velocity(CLEAN, NOISE, timesteps.long()))
    else:
        assert torch.equal(target, NOISE if prediction == "epsilon" else CLEAN)


def test_sigmas_are_logit_normal_and_shifted() -> None:
    generator = torch.Generator().manual_seed(0)
    sigma = sample_sigma(20_000, generator, mean=0.5, std=2.0)
    assert 0 < sigma.min() < sigma.max() < 1
    logits = torch.logit(sigma)
    assert abs(logits.mean() - 0.5) < 0.05
    assert abs(logits.std() - 2.0) < 0.05
    again = sample_sigma(20_000, torch.Generator().manual_seed(0), mean=0.5, std=2.0, shift=3.0)
    torch.testing.assert_close(again, shift_sigma(sigma, 3.0))
    torch.testing.assert_close(shift_sigma(torch.tensor([0.0, 0.5, 1.0]), 3.0), torch.tensor([0.0, 0.75, 1.0]))


def test_losses_stay_per_sample() -> None:
    prediction, target = torch.zeros(2, 3, 2, dtype=torch.bfloat16), torch.zeros(2, 3, 2)
    target[1] = 2.0
    assert torch.equal(sample_losses(prediction, target), torch.tensor([0.0, 4.0]))
    exact = torch.full((1, 1), 1.0 + 1e-12, dtype=torch.float64)
    assert float(sample_losses(exact, torch.ones(1, 1))) == pytest.approx(1e-24, rel=1e-3, abs=0.0)
