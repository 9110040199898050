"""Settings of a SemanticGen generation, from which arguments, flags, sidecars and memory plans derive. Imports no
torch."""

from sememe.records import Count, Positive, Record, Scale, SizeSettings

_SIZE = SizeSettings()


class SamplingSettings(Record):
    """How plan and result are denoised.

    Attributes:
        num_inference_steps: Denoising steps of the renderer.
        num_planning_steps: Denoising steps of the planner.
        max_sequence_length: Tokens per prompt; none uses the tokenizer's own length.
    """

    num_inference_steps: Count = 50
    num_planning_steps: Count = 50
    max_sequence_length: Count | None = None


class GuidanceSettings(Record):
    """Strength of text and plan. The paper describes no guidance; 1 turns each off.

    Attributes:
        guidance_scale: Strength of the prompt in rendering.
        planning_guidance_scale: Strength of the prompt in planning.
        plan_guidance_scale: Strength of the plan in rendering; 0 leaves the plan out.
        negative_prompt: Text to steer away from, in planning and rendering.
    """

    guidance_scale: Scale = 5.0
    planning_guidance_scale: Scale = 5.0
    plan_guidance_scale: Scale = 1.0
    negative_prompt: str = ""


class PlanSettings(Record):
    """How the renderer reads the plan.

    Attributes:
        plan_noise: Standard deviation of noise on the plan's features, which have unit variance: 0 follows the plan
            strictly, more leaves more to the renderer.
        window_seconds: Length of the renderer's attention windows; none attends over the whole video. The paper does
            not give it.
    """

    plan_noise: Scale = 0.0
    window_seconds: Positive | None = 5.0


class Settings(Record):
    """Settings of a generation, in groups; no two fields of all groups have the same name.

    Attributes:
        size: Shape of the result.
        sampling: Denoising.
        guidance: Strength of prompt and plan.
        plan: Reading of the plan.
    """

    size: SizeSettings = _SIZE
    sampling: SamplingSettings = SamplingSettings()
    guidance: GuidanceSettings = GuidanceSettings()
    plan: PlanSettings = PlanSettings()

    def list_shortcuts(self) -> list[str]:
        """Return settings that depart from training; there are none."""
        return []


BUILT_IN = Settings().override(
    height=64,
    width=64,
    num_frames=33,
    fps=8.0,
    num_inference_steps=12,
    num_planning_steps=24,
    guidance_scale=1.0,
    planning_guidance_scale=3.0,
    window_seconds=4.0,
)
"""Initial settings of the built-in model; its folder has others, chosen by measurement."""
