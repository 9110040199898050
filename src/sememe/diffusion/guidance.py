"""Guidance as a table: predictions under several variants of the conditions, each with a weight.

Every guidance is a weighted sum of predictions whose weights add up to 1. Rows of weight 0 are dropped, so that
guidance that is off costs nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from sememe.errors import InputError

Text = Literal["positive", "negative"]
ReferenceChoice = Literal["none", "given", "negative"]
"""Which reference a prediction sees: none (the frozen backbone), the given one, or the one to lead away from."""
Batching = Literal["sequential", "batched"]


@dataclass(frozen=True)
class Variant:
    """One variant of the conditioning: a choice of text and of reference."""

    text: Text
    reference: ReferenceChoice


@dataclass(frozen=True)
class GuidanceRow:
    """A variant and the weight of its prediction."""

    variant: Variant
    weight: float


@dataclass(frozen=True)
class Guidance:
    """The table. Its variants differ, no weight is 0, and the weights add up to 1."""

    rows: tuple[GuidanceRow, ...]

    def __post_init__(self) -> None:
        assert len({row.variant for row in self.rows}) == len(self.rows), "each variant must be one row"
        assert all(row.weight != 0 for row in self.rows), "rows of weight 0 must be dropped"
        assert math.isclose(sum(row.weight for row in self.rows), 1.0, abs_tol=1e-6), "weights must add up to 1"

    @property
    def needs_reference(self) -> bool:
        return any(row.variant.reference != "none" for row in self.rows)

    def groups(self, batching: Batching) -> list[tuple[GuidanceRow, ...]]:
        """Rows that are predicted together: one at a time, or those that agree in the reference that they see."""
        if batching == "sequential":
            return [(row,) for row in self.rows]
        choices = get_args(ReferenceChoice)
        parts = [tuple(row for row in self.rows if row.variant.reference == choice) for choice in choices]
        return [part for part in parts if part]

    def to_table(self) -> list[dict[str, Any]]:
        """The rows as plain records, for a protocol of the run."""
        return [
            {"text": row.variant.text, "reference": row.variant.reference, "weight": row.weight} for row in self.rows
        ]


def make_guidance(weights: Sequence[tuple[Variant, float]]) -> Guidance:
    """A table of the given weights: equal variants are merged, what weighs nothing is dropped."""
    merged: dict[Variant, float] = {}
    for variant, weight in weights:
        merged[variant] = merged.get(variant, 0.0) + weight
    return Guidance(tuple(GuidanceRow(variant, weight) for variant, weight in merged.items() if abs(weight) > 1e-9))


def video_as_prompt_guidance(
    guidance_scale: float,
    reference_guidance_scale: float,
    *,
    texts_differ: bool = True,
    null_reference: ReferenceChoice = "none",
) -> Guidance:
    """Text and reference guidance of Video-As-Prompt; the null of the reference is the frozen backbone.

    v = v(null, negative) + s_ref * (v(reference, negative) - v(null, negative))
        + s_text * (v(reference, positive) - v(reference, negative))

    A reference scale of 0 leaves the reference out altogether; text guidance then acts on the backbone alone. Equal
    scales leave two rows: the reference with the positive text, and the null with the negative one. A reference scale
    of 1 is the guidance of the official code: text only.

    Args:
        guidance_scale: s_text, 1 for off.
        reference_guidance_scale: s_ref, 1 for off, 0 for no reference.
        texts_differ: whether positive and negative texts differ; where they do not, text guidance has no effect.
        null_reference: what the reference leads away from: nothing but the backbone, or another reference.

    Raises:
        InputError: where a scale is negative or not a number.
    """
    for name, scale in (("guidance_scale", guidance_scale), ("reference_guidance_scale", reference_guidance_scale)):
        if not math.isfinite(scale) or scale < 0:
            raise InputError(f"{name} must be a number of at least 0 (1 is off), got {scale}")
    negative: Text = "negative" if texts_differ else "positive"
    seen: ReferenceChoice = "given" if reference_guidance_scale != 0 else null_reference
    return make_guidance(
        [
            (Variant(negative, null_reference), 1.0 - reference_guidance_scale),
            (Variant(negative, seen), reference_guidance_scale - guidance_scale),
            (Variant("positive", seen), guidance_scale),
        ]
    )


def is_guided_at(timestep: float, interval: Sequence[float]) -> bool:
    """Whether guidance acts at a timestep in 0..1000, given the interval in which it does, in thousandths of that.

    Outside, the prediction with text and reference is taken as it is (arXiv 2404.07724). At low noise it has been
    decided what happens; guidance then costs a forward, and distorts.
    """
    low, high = interval
    return low <= timestep / 1000.0 <= high


def dynamic_guidance_scale(guidance_scale: float, timestep: float, num_inference_steps: int) -> float:
    """The text scale at one step as CogVideoX's pipelines have it under `use_dynamic_cfg`.

    It was meant to rise smoothly, but mixes a timestep in 0..999 with a number of steps, so that it jumps about
    between 1 and 1 + `guidance_scale`. It is here because the official demonstrations were made with it.
    """
    progress = (num_inference_steps - timestep) / num_inference_steps
    return 1.0 + guidance_scale * (1.0 - math.cos(math.pi * progress**5)) / 2.0


def combine(rows: Sequence[GuidanceRow], predictions: Sequence[torch.Tensor]) -> torch.Tensor:
    """The weighted sum of the rows' predictions, in float32."""
    terms = [row.weight * prediction.float() for row, prediction in zip(rows, predictions, strict=True)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
