"""Use another scheduler of diffusers, and watch each step.

The built-in model predicts the velocity of flow matching, so the scheduler has to be one for flow matching.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler

from sememe import VideoAsPromptPipeline, write_clip
from sememe.world import random_scene, render


def print_step(
    pipe: VideoAsPromptPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]
) -> dict[str, Any]:
    print(f"step {step + 1}: timestep {float(timestep):.0f}, deviation {float(tensors['latents'].std()):.2f}")
    return {}


def main(folder: Path, num_inference_steps: int = 8) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pipe = VideoAsPromptPipeline.from_pretrained("tiny")
    shift = pipe.scheduler.config.shift
    pipe.scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000
    )
    out = pipe(
        image=render(random_scene(2), None).clip.frames[0],
        references=[render(random_scene(1), "zoom_in").clip],
        num_inference_steps=num_inference_steps,
        generator=torch.Generator().manual_seed(7),
        callback_on_step_end=print_step,
    )
    write_clip(out.clips[0], folder / "unipc.mp4")


if __name__ == "__main__":
    main(Path("outputs"))
