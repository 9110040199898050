"""Text and reference guidance of Video-As-Prompt, and how it changes from step to step."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from sememe.diffusion.guidance import Guidance, GuidanceSchedule, is_guided_at, make_guidance
from sememe.video_as_prompt.settings import GuidanceSettings, Settings

Text = Literal["positive", "negative"]
ReferenceChoice = Literal["none", "given", "negative"]
"""Which reference a prediction sees: none (the frozen backbone), the given one, or the negative one."""


@dataclass(frozen=True)
class Variant:
    """One variant of the conditioning: a choice of text and of reference."""

    text: Text
    reference: ReferenceChoice

    @property
    def batch_key(self) -> int:
        """Place of the reference among the choices: variants with the same reference share a forward."""
        return get_args(ReferenceChoice).index(self.reference)


def video_as_prompt_guidance(
    guidance_scale: float,
    reference_guidance_scale: float,
    *,
    texts_differ: bool = True,
    null_reference: ReferenceChoice = "none",
) -> Guidance[Variant]:
    """Make the table of text and reference guidance; the null of the reference is the frozen backbone.

    v = v(null, negative) + s_ref * (v(reference, negative) - v(null, negative))
        + s_text * (v(reference, positive) - v(reference, negative))

    A reference scale of 0 leaves the reference out altogether; text guidance then acts on the backbone alone. Equal
    scales leave two rows: the reference with the positive text, and the null with the negative one. A reference scale
    of 1 is the guidance of the official code: text only.

    Args:
        guidance_scale: s_text, 1 for off.
        reference_guidance_scale: s_ref, 1 for off, 0 for no reference.
        texts_differ: Whether a negative text is read that differs from the positive one; where none is, text guidance
            has no effect.
        null_reference: What the reference leads away from: nothing but the backbone, or another reference.
    """
    negative: Text = "negative" if texts_differ else "positive"
    seen: ReferenceChoice = "given" if reference_guidance_scale != 0 else null_reference
    return make_guidance(
        [
            (Variant(negative, null_reference), 1.0 - reference_guidance_scale),
            (Variant(negative, seen), reference_guidance_scale - guidance_scale),
            (Variant("positive", seen), guidance_scale),
        ]
    )


def dynamic_guidance_scale(guidance_scale: float, timestep: float, num_inference_steps: int) -> float:
    """Return the text scale at one step as CogVideoX's pipelines have it under `use_dynamic_cfg`.

    It was meant to rise smoothly, but mixes a timestep in 0..999 with a number of steps, so that it jumps about
    between 1 and 1 + `guidance_scale`. It is here because the official demonstrations were made with it.
    """
    progress = (num_inference_steps - timestep) / num_inference_steps
    return 1.0 + guidance_scale * (1.0 - math.cos(math.pi * progress**5)) / 2.0


@dataclass(frozen=True, kw_only=True)
class VideoAsPromptSchedule:
    """Which guidance acts at which timestep.

    Attributes:
        settings: Scales, interval and number of steps.
        texts_differ: Whether positive and negative texts differ. Text guidance that is off leaves the negative text
            out altogether, so that the reference's guidance alone is two forwards, both of the positive text.
    """

    settings: Settings
    texts_differ: bool

    @property
    def base(self) -> Guidance[Variant]:
        """The guidance with the scales as they are set."""
        return self._make(self._guidance.guidance_scale, self._guidance.reference_guidance_scale)

    @property
    def needed(self) -> Guidance[Variant]:
        """Guidance with every variant that some step may need; a text scale that changes may need any."""
        reference_scale = self._guidance.reference_guidance_scale
        return self._make(reference_scale + 2.0, reference_scale) if self._moves else self.base

    @property
    def by_timestep(self) -> Guidance[Variant] | GuidanceSchedule[Variant]:
        """What the denoising loop takes: one guidance where it is the same at every step, else a function."""
        return self.at if self._moves or self._guidance.is_limited else self.base

    def at(self, timestep: float) -> Guidance[Variant]:
        """Return the guidance at a timestep in 0..1000."""
        guidance = self._guidance
        if not is_guided_at(timestep, guidance.guidance_interval):
            return self._make(1.0, 0.0 if guidance.reference_guidance_scale == 0 else 1.0)
        scale = guidance.guidance_scale
        if self._moves:
            scale = dynamic_guidance_scale(scale, timestep, self.settings.sampling.num_inference_steps)
        return self._make(scale, guidance.reference_guidance_scale)

    @property
    def _guidance(self) -> GuidanceSettings:
        return self.settings.guidance

    @property
    def _moves(self) -> bool:
        # As in diffusers, text guidance that is off stays off.
        return self.settings.experimental.use_dynamic_cfg and self._guidance.guidance_scale > 1.0

    def _make(self, guidance_scale: float, reference_guidance_scale: float) -> Guidance[Variant]:
        return video_as_prompt_guidance(
            guidance_scale,
            reference_guidance_scale,
            texts_differ=self.texts_differ and self._guidance.guidance_scale != 1.0,
            null_reference="negative" if self.settings.experimental.negative_references else "none",
        )
