"""Flow matching: its formulas invert each other, and sigmas are drawn as told."""

import torch

from sememe.diffusion.objectives import (
    add_noise,
    clean_from_velocity,
    noise_from_velocity,
    sample_losses,
    sample_sigma,
    shift_sigma,
    timestep_of,
    velocity_target,
)


def test_velocity_leads_to_both_ends() -> None:
    torch.manual_seed(0)
    clean, noise, sigma = torch.randn(3, 4, 2), torch.randn(3, 4, 2), torch.tensor([0.0, 0.3, 1.0])
    noisy, velocity = add_noise(clean, noise, sigma), velocity_target(clean, noise)
    assert torch.equal(noisy[0], clean[0])
    assert torch.equal(noisy[2], noise[2])
    torch.testing.assert_close(noisy[1], 0.7 * clean[1] + 0.3 * noise[1])
    torch.testing.assert_close(clean_from_velocity(noisy, velocity, sigma), clean)
    torch.testing.assert_close(noise_from_velocity(noisy, velocity, sigma), noise)
    # The velocity is the derivative of the path.
    later = add_noise(clean, noise, sigma + 1e-2)
    torch.testing.assert_close((later - noisy) / 1e-2, velocity, atol=1e-3, rtol=1e-3)


def test_sigmas_are_logit_normal_and_shifted() -> None:
    generator = torch.Generator().manual_seed(0)
    sigma = sample_sigma(20_000, generator, mean=0.5, std=2.0)
    assert 0 < sigma.min() < sigma.max() < 1
    logits = torch.logit(sigma)
    assert abs(logits.mean() - 0.5) < 0.05
    assert abs(logits.std() - 2.0) < 0.05
    again = sample_sigma(20_000, torch.Generator().manual_seed(0), mean=0.5, std=2.0, shift=3.0)
    torch.testing.assert_close(again, shift_sigma(sigma, 3.0))
    ends = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(shift_sigma(ends, 3.0), torch.tensor([0.0, 0.75, 1.0]))
    assert torch.equal(timestep_of(ends), torch.tensor([0.0, 500.0, 1000.0]))


def test_losses_stay_per_sample() -> None:
    prediction, target = torch.zeros(2, 3, 2, dtype=torch.bfloat16), torch.zeros(2, 3, 2)
    target[1] = 2.0
    assert torch.equal(sample_losses(prediction, target), torch.tensor([0.0, 4.0]))
