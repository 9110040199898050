"""Guidance by time and content (arXiv 2302.03011, section 3.4) and by structure, as rows of one table."""

from dataclasses import dataclass
from typing import Literal

from sememe.diffusion.guidance import Guidance, make_guidance
from sememe.gen1.settings import MAX_LEVEL, Settings

Frames = Literal["alone", "together"]
"""Whether frames are predicted one by one, by the image model, or together, by the video model."""
Content = Literal["none", "given"]
Detail = Literal["given", "least"]
"""Whether structure has the detail that its level leaves, or that of the highest level."""


@dataclass(frozen=True)
class Variant:
    """One variant of the conditioning: how frames are predicted, under which content and how detailed a structure."""

    frames: Frames
    content: Content
    structure: Detail = "given"

    @property
    def batch_key(self) -> int:
        """0 for the image model and 1 for the video model: variants of one model share a forward."""
        return int(self.frames == "together")


def make_table(settings: Settings) -> Guidance[Variant]:
    """Make the table of temporal, content and structure guidance.

    v = v(alone, none) + s_time * (v(together, none) - v(alone, none)) + s * (v(together, given) - v(together, none))
        + (s_structure - 1) * (v(together, given) - v(together, given, least structure))

    The last line is not the paper's. The network knows all levels of detail, so what detail adds to a prediction can be
    added more than once, as classifier-free guidance does with content; at the highest level there is no less detail.

    Without it, that takes three predictions in general. A temporal scale of 1 leaves ordinary classifier-free guidance,
    which takes two; two equal scales leave the image model and the video model with content; both at 1 leave a single
    prediction. It is linear in the predictions, so it holds for velocities and noise too.
    """
    scale, time_scale = settings.guidance.guidance_scale, settings.guidance.temporal_guidance_scale
    is_least = settings.structure.structure_level == MAX_LEVEL
    structure_scale = 1.0 if is_least else settings.guidance.structure_guidance_scale
    return make_guidance(
        [
            (Variant("alone", "none"), 1.0 - time_scale),
            (Variant("together", "none"), time_scale - scale),
            (Variant("together", "given"), scale + structure_scale - 1.0),
            (Variant("together", "given", structure="least"), 1.0 - structure_scale),
        ]
    )
