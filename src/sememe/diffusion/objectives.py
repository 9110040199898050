"""Flow matching: straight paths from clean latents to noise, and the velocity along them.

With sigma in [0, 1], `noisy = (1 - sigma) * clean + sigma * noise`; the network predicts the velocity
`noise - clean` (arXiv 2210.02747; the parametrisation of Wan). The timestep that a network is told is 1000 * sigma.
"""

import torch
from jaxtyping import Float

Samples = Float[torch.Tensor, "batch ..."]
PerSample = Float[torch.Tensor, " batch"]

NUM_TRAIN_TIMESTEPS = 1000


def add_noise(clean: Samples, noise: Samples, sigma: PerSample) -> Samples:
    """The point at `sigma` on the way from `clean` to `noise`."""
    weight = _spread(sigma, clean)
    return (1 - weight) * clean + weight * noise


def velocity_target(clean: Samples, noise: Samples) -> Samples:
    """What the network is to predict, at any sigma."""
    return noise - clean


def clean_from_velocity(noisy: Samples, velocity: Samples, sigma: PerSample) -> Samples:
    """The clean latents that a velocity at `noisy` points away from."""
    return noisy - _spread(sigma, noisy) * velocity


def noise_from_velocity(noisy: Samples, velocity: Samples, sigma: PerSample) -> Samples:
    """The noise that a velocity at `noisy` points to."""
    return noisy + (1 - _spread(sigma, noisy)) * velocity


def shift_sigma(sigma: Samples, shift: float) -> Samples:
    """Moves sigmas towards the noisy end for `shift` > 1; 0 and 1 stay (arXiv 2403.03206, section 5.3.2)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sample_sigma(
    num_samples: int, generator: torch.Generator, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> PerSample:
    """Draws sigmas from a logit-normal distribution (arXiv 2403.03206, section 3.1), then shifts them.

    Args:
        num_samples: how many.
        generator: the source of randomness; its device is the result's.
        mean: of the normal variable; above 0 favours noisy samples.
        std: of the normal variable.
        shift: see `shift_sigma`.
    """
    normal = torch.randn(num_samples, generator=generator, device=generator.device)
    return shift_sigma(torch.sigmoid(mean + std * normal), shift)


def timestep_of(sigma: PerSample) -> PerSample:
    """The timestep in [0, 1000] at which the network is asked."""
    return sigma * NUM_TRAIN_TIMESTEPS


def sample_losses(prediction: Samples, target: Samples) -> PerSample:
    """The mean squared error of every sample, in float32, not reduced over the batch."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)


def _spread(sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return sigma.to(like).view(-1, *[1] * (like.ndim - 1))
