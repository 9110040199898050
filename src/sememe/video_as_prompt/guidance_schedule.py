"""The guidance of a generation from step to step."""

from dataclasses import dataclass

from sememe.diffusion.denoise import GuidanceSchedule
from sememe.diffusion.guidance import (
    Guidance,
    dynamic_guidance_scale,
    is_guided_at,
    video_as_prompt_guidance,
)
from sememe.video_as_prompt.settings import GuidanceSettings, Settings


@dataclass(frozen=True, kw_only=True)
class VideoAsPromptSchedule:
    """Which guidance acts at which timestep.

    Attributes:
        settings: Scales, interval and number of steps.
        texts_differ: Whether positive and negative texts differ.
    """

    settings: Settings
    texts_differ: bool

    @property
    def base(self) -> Guidance:
        """With the scales as they are set."""
        return self._make(self._guidance.guidance_scale, self._guidance.reference_guidance_scale)

    @property
    def needed(self) -> Guidance:
        """Every variant that some step may need: a text scale that moves may need any."""
        reference_scale = self._guidance.reference_guidance_scale
        return self._make(reference_scale + 2.0, reference_scale) if self._moves else self.base

    @property
    def by_timestep(self) -> Guidance | GuidanceSchedule:
        """For the denoising loop: one guidance where it is the same at every step."""
        return self.at if self._moves or self._guidance.is_limited else self.base

    def at(self, timestep: float) -> Guidance:
        """The guidance at a timestep in 0..1000."""
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

    def _make(self, guidance_scale: float, reference_guidance_scale: float) -> Guidance:
        return video_as_prompt_guidance(
            guidance_scale,
            reference_guidance_scale,
            texts_differ=self.texts_differ,
            null_reference="negative" if self.settings.experimental.negative_references else "none",
        )
