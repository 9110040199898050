"""Predictions of planner and renderer under variants of the conditioning, for the denoising loop."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor

from sememe.backbones.first_frame import ConditionChannels
from sememe.semanticgen.guidance import Text, Variant
from sememe.semanticgen.network_renderer import SemanticGenTransformer
from sememe.semanticgen.shapes import PlanFeatures, PredictedLatents, TextEmbeds, VideoLatents
from sememe.semanticgen.windows import WindowLayout

Predictions = Float[Tensor, "variant batch channel frame height width"]


@dataclass(frozen=True, eq=False)
class Predictor:
    """Calls a transformer on latents; for a planner these are plans, whose slices stand in the place of frames.

    Attributes:
        transformer: Renderer or planner.
        texts: Embedded text of each segment, by choice of text.
        layouts: Layout of the tokens with a plan (True) and without one (False), where a variant needs it.
        plan: Features that the renderer follows; None for none.
        channels: Mask and latents of a first picture, which follow the noisy latents; None for a transformer that takes
            none.
    """

    transformer: SemanticGenTransformer
    texts: Mapping[Text, tuple[TextEmbeds, ...]]
    layouts: Mapping[bool, WindowLayout]
    plan: PlanFeatures | None = None
    channels: ConditionChannels | None = None

    def __call__(self, latents: VideoLatents, timestep: Num[Tensor, ""], variants: tuple[Variant, ...]) -> Predictions:
        """Predict the velocity of all latents under each variant, in windows one by one where there are several."""
        inputs = latents if self.channels is None else torch.cat([latents, self.channels.to(latents)], dim=1)
        steps = timestep.to(latents.device).expand(len(latents))
        return torch.stack([self._predict(inputs, steps, variant) for variant in variants])

    def _predict(self, inputs: VideoLatents, steps: Float[Tensor, " batch"], variant: Variant) -> PredictedLatents:
        layout, dtype = self.layouts[variant.has_plan], self.transformer.dtype
        predicted = self.transformer(
            inputs.to(dtype),
            steps,
            tuple(text.to(inputs.device, dtype) for text in self.texts[variant.text]),
            semantic=self.plan if variant.has_plan else None,
            layout=layout,
            one_by_one=len(layout.windows(0)) > 1,
        )
        return predicted.sample.float()
