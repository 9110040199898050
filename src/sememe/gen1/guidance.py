"""Temporal guidance and content guidance as rows of one table (arXiv 2302.03011, section 3.4)."""

import math
from dataclasses import dataclass
from typing import Literal

from sememe.diffusion.guidance import Guidance, make_guidance
from sememe.errors import InputError

Frames = Literal["alone", "together"]
"""Whether frames are predicted one by one, by the image model, or together, by the video model."""
Content = Literal["none", "given"]


@dataclass(frozen=True)
class Variant:
    """One variant of the conditioning: how frames are predicted, and under which content."""

    frames: Frames
    content: Content

    @property
    def batch_key(self) -> int:
        """0 for the image model and 1 for the video model: variants of one model share a forward."""
        return int(self.frames == "together")


def gen1_guidance(guidance_scale: float, temporal_guidance_scale: float) -> Guidance[Variant]:
    """Make the table of temporal and content guidance.

    v = v(alone, none) + s_time * (v(together, none) - v(alone, none)) + s * (v(together, given) - v(together, none))

    In general that takes three predictions. A temporal scale of 1 leaves ordinary classifier-free guidance, which takes
    two; two equal scales leave the image model and the video model with content; both at 1 leave a single prediction.
    It is linear in the predictions, so it holds for velocities and noise too.

    Args:
        guidance_scale: s, strength of the content, 1 for off.
        temporal_guidance_scale: s_time; above 1 frames resemble each other more, below 1 less, 1 is off.

    Raises:
        InputError: A scale is negative or not a number.
    """
    scales = {"guidance_scale": guidance_scale, "temporal_guidance_scale": temporal_guidance_scale}
    for name, scale in scales.items():
        if not math.isfinite(scale) or scale < 0:
            raise InputError(f"{name} must be a number of at least 0 (1 is off), got {scale}")
    weights = [
        (Variant("alone", "none"), 1.0 - temporal_guidance_scale),
        (Variant("together", "none"), temporal_guidance_scale - guidance_scale),
        (Variant("together", "given"), guidance_scale),
    ]
    return make_guidance(weights)
