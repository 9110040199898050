"""Noise on plans: in training, so that a renderer tolerates a planner's errors, and in use, as a setting.

The paper adds noise without giving its law (arXiv 2512.20619, section 3.3). The half-normal one is that of
representation autoencoders, which it names (arXiv 2510.11690).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sememe.semanticgen.shapes import PlanFeatures
from sememe.semanticgen.stage_settings import NoiseLaw

NoiseLevels = Float[Tensor, " batch"]


def draw_noise_levels(law: NoiseLaw, tau: float, num_samples: int, generator: torch.Generator) -> NoiseLevels:
    """Draw a standard deviation of the noise for each plan.

    Args:
        law: `half_normal` draws the size of a normal variable of standard deviation `tau`, `uniform` between 0 and
            `tau`, and `none` gives 0.
        tau: Strength, at least 0; the features have unit variance.
        num_samples: Number of plans.
        generator: Source of randomness; its device is the result's.
    """
    device = generator.device
    if law == "half_normal":
        return tau * torch.randn(num_samples, generator=generator, device=device).abs()
    if law == "uniform":
        return tau * torch.rand(num_samples, generator=generator, device=device)
    return torch.zeros(num_samples, device=device)


def add_semantic_noise(features: PlanFeatures, levels: NoiseLevels, generator: torch.Generator) -> PlanFeatures:
    """Add Gaussian noise of the given standard deviations; a level of 0 leaves features as they are."""
    noise = torch.randn(features.shape, generator=generator, device=generator.device).to(features)
    return features + levels.to(features).view(-1, 1, 1, 1, 1) * noise
