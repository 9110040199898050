"""The guidance of a generation from step to step."""

from dataclasses import dataclass

from sememe.diffusion.denoise import GuidanceSchedule
from sememe.diffusion.guidance import (
    Guidance,
    ReferenceChoice,
    dynamic_guidance_scale,
    is_guided_at,
    video_as_prompt_guidance,
)
from sememe.video_as_prompt.defaults import GenerationDefaults


@dataclass(frozen=True, kw_only=True)
class VideoAsPromptSchedule:
    """Which guidance acts at which timestep.

    Attributes:
        settings: scales, interval and number of steps.
        texts_differ: whether positive and negative texts differ.
        null_reference: what the reference leads away from.
        is_dynamic: whether the scale of the text moves as in the official CogVideoX demonstration.
    """

    settings: GenerationDefaults
    texts_differ: bool
    null_reference: ReferenceChoice
    is_dynamic: bool

    @property
    def base(self) -> Guidance:
        """With the scales as they are set."""
        return self._make(self.settings.guidance_scale, self.settings.reference_guidance_scale)

    @property
    def needed(self) -> Guidance:
        """Every variant that some step may need: a text scale that moves may need any."""
        reference_scale = self.settings.reference_guidance_scale
        return self._make(reference_scale + 2.0, reference_scale) if self._moves else self.base

    @property
    def is_limited(self) -> bool:
        """Whether guidance acts at some of the timesteps only."""
        return tuple(self.settings.guidance_interval) != (0.0, 1.0)

    @property
    def by_timestep(self) -> Guidance | GuidanceSchedule:
        """For the denoising loop: one guidance where it is the same at every step."""
        return self.at if self._moves or self.is_limited else self.base

    def at(self, timestep: float) -> Guidance:
        """The guidance at a timestep in 0..1000."""
        settings = self.settings
        if not is_guided_at(timestep, settings.guidance_interval):
            return self._make(1.0, 0.0 if settings.reference_guidance_scale == 0 else 1.0)
        scale = settings.guidance_scale
        if self._moves:
            scale = dynamic_guidance_scale(scale, timestep, settings.num_inference_steps)
        return self._make(scale, settings.reference_guidance_scale)

    @property
    def _moves(self) -> bool:
        # As in diffusers, text guidance that is off stays off.
        return self.is_dynamic and self.settings.guidance_scale > 1.0

    def _make(self, guidance_scale: float, reference_guidance_scale: float) -> Guidance:
        return video_as_prompt_guidance(
            guidance_scale,
            reference_guidance_scale,
            texts_differ=self.texts_differ,
            null_reference=self.null_reference,
        )
