"""Official habits that change pictures: see `Quirk` in `sememe.video_as_prompt.settings`."""

import numpy as np
import PIL.Image
import torch
from diffusers import SchedulerMixin, UniPCMultistepScheduler

from sememe.video import Clip


def stretch_clip(clip: Clip, height: int, width: int) -> Clip:
    """Return the clip with every frame stretched with Lanczos' filter, as diffusers' image processor does."""
    if clip.size == (height, width):
        return clip
    resampling = PIL.Image.Resampling.LANCZOS
    frames = [np.asarray(PIL.Image.fromarray(frame).resize((width, height), resampling)) for frame in clip.frames]
    return Clip(np.stack(frames), clip.fps)


def set_truncated_timesteps(scheduler: SchedulerMixin, num_inference_steps: int, device: torch.device) -> None:
    """Set the steps of UniPC for flow matching as the diffusers in the official Wan code (0.34.0.dev0) has them.

    Noise levels are spread from 1 - 1 / 1000 down, before the shift, where they now start at 1; and timesteps lose
    their fractions, which are now rounded. Other schedulers did not change.
    """
    if not isinstance(scheduler, UniPCMultistepScheduler) or not scheduler.config["use_flow_sigmas"]:
        scheduler.set_timesteps(num_inference_steps, device=device)
        return
    lowest = 1.0 / scheduler.config.num_train_timesteps
    sigmas = 1.0 - np.linspace(1.0, lowest, num_inference_steps + 1)
    scheduler.set_timesteps(num_inference_steps, device=device, sigmas=sigmas[:0:-1].copy())
    levels = scheduler.sigmas[:num_inference_steps].double() * scheduler.config.num_train_timesteps
    scheduler.timesteps = levels.to(torch.int64).to(device)
