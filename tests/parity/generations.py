"""Whole generations of tiny pipelines with the settings of released models, and the latents that they gave.

A clone without the official vectors notices by them when the preparation of inputs, guidance or the scheduler's steps
change. The latents were written while the official generations agreed to 1e-4. Write them anew only on purpose, after
such a check:

    PYTHONPATH=tests python tests/parity/generations.py
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.settings import RELEASED
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline

PATH = Path(__file__).parent / "vectors" / "generations.safetensors"
NAMES = ("wan", "wan_controlled", "cogvideox", "cogvideox_controlled")
SIZE: dict[str, Any] = {"height": 32, "width": 48, "num_inference_steps": 3}
CONTROLS: dict[str, Any] = {
    "reference_guidance_scale": 2.0,
    "reference_strength": 0.37,
    "guidance_interval": (0.6, 1.0),
}


@lru_cache
def make(family: str) -> VideoAsPromptPipeline:
    """Make a two-way pipeline whose stock weights are disturbed: norms begin at ones, where mistakes do not show.

    Those of the encoders are drawn here as a whole, because versions of transformers begin with different ones.
    """
    pipe = make_pipeline("joint", "wan", clip=True) if family == "wan" else make_cogvideox_pipeline()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for encoder in filter(None, (pipe.text_encoder, pipe.image_encoder)):
            for name, parameter in sorted(encoder.named_parameters()):
                parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return pipe


@torch.no_grad()
def generate(name: str) -> torch.Tensor:
    """Generate once with the defaults of the family, or with two references and controls; return the latents."""
    family, _, controls = name.partition("_")
    pipe = make(family)
    settings = RELEASED[family].override(
        **SIZE,
        num_frames=9,
        max_sequence_length=512 if family == "wan" else 8,
        **(CONTROLS if controls else {}),
    )
    clips = [make_clip(1, num_frames=20), make_clip(2, num_frames=7, height=64)] if controls else make_clip(1)
    output = pipe(
        make_picture(),
        clips,
        "a red  ball",
        reference_prompts=["a cat melts", "melts"] if controls else "a cat melts",
        generator=torch.Generator().manual_seed(4),
        settings=settings,
        output_type="latent",
    )
    latents: torch.Tensor = output.frames
    return latents


if __name__ == "__main__":
    save_file({name: generate(name).contiguous() for name in NAMES}, PATH)
