"""Guidance of planner and renderer by text, and of the renderer by the plan. The paper describes none."""

from dataclasses import dataclass
from typing import Literal

from sememe.diffusion.guidance import Guidance, make_guidance

Text = Literal["positive", "negative"]


@dataclass(frozen=True)
class Variant:
    """One variant of the conditioning: a choice of text, with or without the plan."""

    text: Text
    has_plan: bool = False

    @property
    def batch_key(self) -> int:
        """Variants with a plan have other tokens than those without."""
        return int(self.has_plan)


def rendering_guidance(
    guidance_scale: float, plan_guidance_scale: float, *, texts_differ: bool = True
) -> Guidance[Variant]:
    """Make the table of the renderer.

    v = v(no plan, negative) + s_plan * (v(plan, negative) - v(no plan, negative))
        + s_text * (v(plan, positive) - v(plan, negative))

    A plan scale of 0 leaves the plan out altogether; text guidance then acts without it. A text scale of 1 leaves the
    negative text out: plan guidance is then under the positive one, and takes two predictions.

    Args:
        guidance_scale: s_text, 1 for off.
        plan_guidance_scale: s_plan, 1 for off, 0 for no plan.
        texts_differ: Whether positive and negative texts differ; where they do not, text guidance has no effect.
    """
    negative: Text = "negative" if texts_differ and guidance_scale != 1 else "positive"
    is_seen = plan_guidance_scale != 0
    return make_guidance(
        [
            (Variant(negative, has_plan=False), 1.0 - plan_guidance_scale),
            (Variant(negative, is_seen), plan_guidance_scale - guidance_scale),
            (Variant("positive", is_seen), guidance_scale),
        ]
    )


def planning_guidance(guidance_scale: float, *, texts_differ: bool = True) -> Guidance[Variant]:
    """Make the table of the planner: v(negative) + s * (v(positive) - v(negative))."""
    return rendering_guidance(guidance_scale, 0.0, texts_differ=texts_differ)
