"""Latents with the errors that a model makes, for training a decoder to mend them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from sememe.backbones.autoencoder import Latents, encode_video
from sememe.training.clips import ClipCollection
from sememe.training.networks import read_video
from sememe.training.recipes import Regeneration
from sememe.video import Clip
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline


class Regenerator:
    """Adds noise to true latents and has a model denoise them, shown another clip of the same condition."""

    def __init__(self, settings: Regeneration, clips: ClipCollection, fps: float) -> None:
        self.settings, self.clips, self.fps = settings, clips, fps
        self.pipeline: VideoAsPromptPipeline = VideoAsPromptPipeline.from_pretrained(settings.model)
        self.pipeline.set_progress_bar_config(disable=True)
        self.scheduler = FlowMatchPartialScheduler.from_config(self.pipeline.scheduler.config)
        self.pipeline.register_modules(scheduler=self.scheduler)
        self._by_condition: dict[str, list[int]] = {}
        for index in range(len(clips)):
            self._by_condition.setdefault(clips.item(index).condition, []).append(index)

    @torch.no_grad()
    def generate(self, indices: Sequence[int]) -> Latents:
        """Return the latents of some clips; a pure function of their numbers."""
        settings, random = self.settings, np.random.Generator(np.random.PCG64(list(indices)))
        frames = [self.clips.frames(index) for index in indices]
        clean = encode_video(self.pipeline.vae, read_video(self.clips, indices))
        strength = float(random.uniform(settings.min_strength, settings.max_strength))
        num_steps = max(1, round(strength * settings.num_inference_steps))
        self.scheduler.strength = strength
        self.scheduler.set_timesteps(num_steps)
        sigma = float(self.scheduler.sigmas[0])
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(int(random.integers(1 << 62))))
        output = self.pipeline(
            image=[clip[0] for clip in frames],
            references=[[self._find_reference(index, random)] for index in indices],
            prompt=[""] * len(frames),
            num_frames=len(frames[0]),
            height=frames[0].shape[1],
            width=frames[0].shape[2],
            latents=(1.0 - sigma) * clean + sigma * noise,
            num_inference_steps=num_steps,
            output_type="latent",
        )
        latents: Latents = output.frames
        return latents

    def _find_reference(self, index: int, random: np.random.Generator) -> Clip:
        same = self._by_condition[self.clips.item(index).condition]
        others = [other for other in same if other != index] or same
        return Clip(self.clips.frames(int(random.choice(others))), self.fps)


class FlowMatchPartialScheduler(FlowMatchEulerDiscreteScheduler):
    """Starts part of the way from noise, as `strength` says (before the scheduler's shift)."""

    strength = 1.0

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None, **_: Any) -> None:
        """Spread the steps over what is left of the way."""
        sigmas = np.linspace(self.strength, self.strength / num_inference_steps, num_inference_steps)
        super().set_timesteps(sigmas=sigmas.tolist(), device=device)
