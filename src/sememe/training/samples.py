"""Samples that a stage generates during training, for visual inspection."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Tensor

from sememe.backbones.autoencoder import Autoencoder, decode_latents, video_to_clips
from sememe.checkpoints.components import load_component
from sememe.diffusion.denoise import denoise
from sememe.diffusion.guidance import Guidance, GuidanceRow
from sememe.diffusion.objectives import prediction_of
from sememe.video.sheet import SheetRow

NUM_SAMPLES = 2
"""Clips on a sheet."""
_FPS = 8.0

Latents = Float[Tensor, "clip channel latent_frame latent_height latent_width"]
Videos = Float[Tensor, "clip 3 frame height width"]
Predict = Callable[[Tensor, Tensor], Tensor]
"""Returns the prediction for noisy latents (batch, ...) at timesteps (batch,) in 0..1000."""


@dataclass(frozen=True)
class _AsGiven:
    """The given conditioning, the only variant of samples."""

    batch_key: int = 0


@dataclass(frozen=True)
class Sampler:
    """Generates latents in a few steps, without guidance, and decodes them."""

    vae: Autoencoder
    scheduler: SchedulerMixin
    num_steps: int = 12

    def make(self, predict: Predict, like: Latents, generator: torch.Generator) -> Latents:
        """Generate latents, float32.

        Args:
            predict: Network.
            like: Latents of the wanted shape and device.
            generator: Source of the noise, on the CPU.
        """
        prediction = prediction_of(self.scheduler)
        assert prediction is not None, "no stage trains for such a scheduler"

        def predict_one(latents: Tensor, timestep: Tensor, variants: tuple[_AsGiven, ...]) -> Tensor:
            timesteps = timestep.to(latents.device, torch.float32).expand(len(latents))
            return predict(latents, timesteps).float().unsqueeze(0)

        noise = torch.randn(like.shape, generator=generator).to(like.device)
        only = Guidance((GuidanceRow(_AsGiven(), 1.0),))
        return denoise(predict_one, self.scheduler, noise, only, self.num_steps, prediction=prediction)

    def show(self, latents: Mapping[str, Latents]) -> list[SheetRow]:
        """Decode latents to rows of a sheet, those of the first clip first.

        Args:
            latents: Equally many latents of each kind, by their label on the sheet.
        """
        return lay_out({name: decode_latents(self.vae.to(each.device), each) for name, each in latents.items()})


def lay_out(videos: Mapping[str, Videos]) -> list[SheetRow]:
    """Return rows of a sheet of videos in [-1, 1], those of the first clip first.

    Args:
        videos: Equally many videos of each kind, by their label on the sheet.
    """
    clips = {name: video_to_clips(each, _FPS) for name, each in videos.items()}
    count = min(map(len, clips.values()))
    return [SheetRow(name, each[number]) for number in range(count) for name, each in clips.items()]


def find_sampler(parts: Mapping[str, Path], scheduler: SchedulerMixin) -> Sampler | None:
    """Return a sampler with the autoencoder among the folders of parts; None where there is none."""
    if "vae" not in parts:
        return None
    return Sampler(load_component("vae", parts["vae"]).eval().requires_grad_(False), scheduler)
