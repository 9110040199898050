"""Trains the expert that reads the reference, on a frozen backbone and cached latents.

Made so that the reference matters: captions that never name what happens, captions of target and reference and the
reference itself dropped independently, and batches that hold the same scene under different conditions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sememe.data.caption_policy import draw_captions, pick_captions
from sememe.data.pairing import PairSampler
from sememe.diffusion.objectives import add_noise, sample_losses, sample_sigma, timestep_of, velocity_target
from sememe.training.stage import StepLoss, Weights
from sememe.video_as_prompt.latent_batches import (
    CaptionTokens,
    LatentSource,
    embed_tokens,
    model_input,
    numpy_generator,
)
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceInputs
from sememe.video_as_prompt.stage_settings import ExpertSettings

__all__ = ["ExpertBatch", "ExpertSettings", "ExpertStage"]


@dataclass(frozen=True)
class ExpertBatch:
    """Targets and references: clean latents and first frames (batch, channel, frame, height, width), captions."""

    clean: Tensor
    first_frames: Tensor
    ids: Tensor
    mask: Tensor
    reference_clean: Tensor
    reference_first_frames: Tensor
    reference_ids: Tensor
    reference_mask: Tensor
    keeps_reference: Tensor


class ExpertStage:
    """The expert as a stage of training; see `training.stage.Stage`."""

    name = "expert"

    def __init__(
        self,
        transformer: WanVideoAsPromptTransformer,
        text_encoder: nn.Module,
        tokenizer: Any,
        latents: LatentSource,
        settings: ExpertSettings,
    ) -> None:
        transformer.freeze_backbone()
        self.transformer = transformer.train()
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.latents = latents
        self.settings = settings
        self._tokens = CaptionTokens(tokenizer)
        self._pairs = PairSampler(latents.conditions, latents.scenes, same_scene_share=settings.same_scene_share)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"transformer": self.transformer}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> ExpertBatch:
        settings, rng = self.settings, numpy_generator(generator)
        pairs = self._pairs.draw(rng, settings.num_references, settings.targets_per_reference)
        choice = draw_captions(
            settings.captions, rng, num_targets=len(pairs.targets), num_references=len(pairs.references)
        )
        parts: list[Tensor] = []
        for picked, kinds in ((pairs.targets, choice.targets), (pairs.references, choice.references)):
            neutral = [self.latents.captions[index] for index in picked]
            full = [self.latents.full_captions[index] for index in picked]
            indices = torch.from_numpy(picked)
            parts += [self.latents.select_clean(indices).float(), self.latents.select_condition(indices).float()]
            parts += self._tokens.tokenize(pick_captions(kinds, neutral, full))
        parts.append(torch.from_numpy(~choice.dropped_references))
        return ExpertBatch(*(part.to(device) for part in parts))

    def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
        settings = self.settings
        sigma = sample_sigma(len(batch.clean), generator, settings.sigma_mean, settings.sigma_std, settings.sigma_shift)
        noise = torch.randn(batch.clean.shape, generator=generator, device=batch.clean.device)
        noisy = model_input(add_noise(batch.clean, noise, sigma), batch.first_frames, settings.num_mask_channels)
        self.text_encoder.to(batch.clean.device)
        with torch.no_grad():
            text = embed_tokens(self.text_encoder, batch.ids, batch.mask)
            reference_text = embed_tokens(self.text_encoder, batch.reference_ids, batch.reference_mask)
        reference = model_input(batch.reference_clean, batch.reference_first_frames, settings.num_mask_channels)
        target = velocity_target(batch.clean, noise)
        losses = self._losses(noisy, timestep_of(sigma), text, reference, reference_text, target, batch.keeps_reference)
        return StepLoss(total=losses.sum(), num_samples=len(losses), weight=batch.keeps_reference.sum())

    def _losses(
        self,
        noisy: Tensor,
        timestep: Tensor,
        text: Tensor,
        reference: Tensor,
        reference_text: Tensor,
        target: Tensor,
        keeps_reference: Tensor,
    ) -> Tensor:
        count = self.settings.targets_per_reference
        if self.transformer.config.attention_mode == "cached":
            cache = self.transformer.encode_reference(reference, reference_text).repeat_interleave(count)
            predicted = self.transformer(noisy, timestep, text, reference=cache).sample
        else:
            inputs = ReferenceInputs(
                (reference.repeat_interleave(count, dim=0),), (reference_text.repeat_interleave(count, dim=0),)
            )
            predicted = self.transformer(noisy, timestep, text, reference=inputs).sample
        # A target without its reference is the frozen backbone's business: it teaches the expert nothing.
        losses = sample_losses(predicted, target)
        return losses * keeps_reference.to(losses)

    def export(self, folder: Path, weights: Weights) -> None:
        """Write `expert/` alone; it goes beside the backbone's `transformer/`."""
        self.transformer.save_expert(folder / "expert")
