"""Paths from clean latents to noise, and what a network predicts along them.

A level runs from 0 (clean) to 1 (noise). In flow matching it is sigma: `noisy = (1 - sigma) * clean + sigma * noise`,
and the network predicts the velocity `noise - clean` (arXiv 2210.02747; Wan). In diffusion it picks a timestep of a
noise schedule: `noisy = a * clean + s * noise` with `a**2 + s**2 = 1`, and the network predicts
`v = a * noise - s * clean` (arXiv 2202.00512; CogVideoX), epsilon, the noise itself (arXiv 2006.11239), or the sample,
which is the clean latents (arXiv 2204.06125).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float, Num
from torch.nn import functional

Samples = Float[torch.Tensor, "batch ..."]
PerSample = Float[torch.Tensor, " batch"]
PredictionType = Literal["flow", "v", "epsilon", "sample"]

NUM_TRAIN_TIMESTEPS = 1000
_BY_SCHEDULER: dict[str | None, PredictionType] = {
    "flow_prediction": "flow",
    "v_prediction": "v",
    "epsilon": "epsilon",
    "sample": "sample",
}


def prediction_of(scheduler: SchedulerMixin) -> PredictionType | None:
    """What a diffusers scheduler takes a prediction for; None for what no path here predicts."""
    if type(scheduler).__name__.startswith("FlowMatch"):
        return "flow"
    return _BY_SCHEDULER.get(str(scheduler.config.get("prediction_type")))


@dataclass(frozen=True)
class NoisySamples:
    """Samples with noise, their levels of it and timesteps, and what a network should predict of them."""

    noisy: Samples
    levels: PerSample
    timesteps: Num[torch.Tensor, " batch"]
    target: Samples


@dataclass(frozen=True)
class NoisePath:
    """How clean latents become noise, and what is predicted on the way.

    Attributes:
        prediction: What the network predicts.
        signal: (timestep,), the weight of the clean latents at each timestep of a diffusion; None for flow matching.
    """

    prediction: PredictionType = "flow"
    signal: Float[torch.Tensor, " timestep"] | None = None

    def __post_init__(self) -> None:
        assert (self.prediction == "flow") == (self.signal is None), "diffusion, and only it, has a noise schedule"

    @classmethod
    def of_scheduler(cls, scheduler: SchedulerMixin) -> "NoisePath":
        """The path that a diffusers scheduler walks back, so that training and sampling share one noise schedule."""
        prediction = prediction_of(scheduler)
        assert prediction is not None, f"no path for prediction_type {scheduler.config.get('prediction_type')}"
        if prediction == "flow":
            return cls(prediction)
        assert hasattr(scheduler, "alphas_cumprod"), f"{type(scheduler).__name__} has no noise schedule"
        return cls(prediction, scheduler.alphas_cumprod.sqrt())

    def draw(self, clean: Samples, levels: Float[torch.Tensor, " part"], generator: torch.Generator) -> NoisySamples:
        """Draw noise for samples; successive parts of the batch, each as long as the levels, get the same."""
        num_parts = len(clean) // len(levels)
        noise = torch.randn((len(levels), *clean.shape[1:]), generator=generator, device=clean.device)
        noise, levels = torch.cat([noise] * num_parts), levels.repeat(num_parts)
        noisy, target = self.add_noise(clean, noise, levels), self.target(clean, noise, levels)
        return NoisySamples(noisy, levels, self.timesteps(levels), target)

    def timesteps(self, levels: PerSample) -> PerSample:
        """The timesteps in [0, 1000] at which the network is asked; whole numbers in diffusion."""
        return levels * NUM_TRAIN_TIMESTEPS if self.signal is None else self._places(levels, self.signal).to(levels)

    def add_noise(self, clean: Samples, noise: Samples, levels: PerSample) -> Samples:
        """The points at `levels` on the way from `clean` to `noise`."""
        clean_weight, noise_weight = self._weights(levels, clean)
        return clean_weight * clean + noise_weight * noise

    def target(self, clean: Samples, noise: Samples, levels: PerSample) -> Samples:
        """What the network should predict at `levels`."""
        if self.prediction == "v":
            clean_weight, noise_weight = self._weights(levels, clean)
            return clean_weight * noise - noise_weight * clean
        if self.prediction == "sample":
            return clean
        return noise - clean if self.prediction == "flow" else noise

    def _weights(self, levels: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights of clean latents and noise, each (batch, 1, ...)."""
        if self.signal is None:
            noise_weight = levels.to(like)
            clean_weight = 1 - noise_weight
        else:
            signal = self.signal.to(levels.device)[self._places(levels, self.signal)]
            clean_weight, noise_weight = signal.to(like), (1 - signal.square()).sqrt().to(like)
        shape = (-1, *[1] * (like.ndim - 1))
        return clean_weight.view(shape), noise_weight.view(shape)

    @staticmethod
    def _places(levels: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
        return (levels * len(signal)).long().clamp(max=len(signal) - 1)


FLOW = NoisePath()


def shift_sigma(sigma: Samples, shift: float) -> Samples:
    """Move levels towards the noisy end for `shift` > 1; 0 and 1 stay (arXiv 2403.03206, section 5.3.2)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sample_sigma(
    num_samples: int, generator: torch.Generator, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> PerSample:
    """Draw levels from a logit-normal distribution (arXiv 2403.03206, section 3.1), then shift them.

    Args:
        num_samples: How many.
        generator: The source of randomness; its device is the result's.
        mean: Mean of the normal variable; above 0 favours noisy samples.
        std: Standard deviation of the normal variable; with 1.7 the levels are about uniform.
        shift: See `shift_sigma`.
    """
    normal = torch.randn(num_samples, generator=generator, device=generator.device)
    return shift_sigma(torch.sigmoid(mean + std * normal), shift)


def sample_losses(prediction: Samples, target: Samples) -> PerSample:
    """The mean squared error of every sample, in float32 or what is wider of the two, not reduced over the batch."""
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return (prediction.to(dtype) - target.to(dtype)).square().flatten(1).mean(dim=1)


def preference_losses(margins: PerSample, strength: float) -> PerSample:
    """The negative logarithm of the probability that the better one is preferred, by a logistic model.

    It is the loss of Diffusion-DPO (arXiv 2311.12908, equation 14), with equal weights of all levels of noise, which is
    also the form for flow matching (arXiv 2501.13918, section 4). There a margin compares gains, and a gain is by how
    much the error of the trained network is below that of the frozen one.

    Args:
        margins: By how much the preferred one is better, in mean squared errors of latents.
        strength: Factor of the margins; the larger it is, the smaller is the difference that is learned.
    """
    return -functional.logsigmoid(strength * margins)
