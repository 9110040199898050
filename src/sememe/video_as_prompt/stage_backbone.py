"""Trains the image-to-video backbone, and its text encoder with it, on cached latents."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sememe.data.caption_policy import draw_captions, pick_captions
from sememe.diffusion.objectives import add_noise, sample_losses, sample_sigma, timestep_of, velocity_target
from sememe.training.stage import StepLoss, Weights
from sememe.video_as_prompt.latent_batches import (
    CaptionTokens,
    LatentSource,
    embed_tokens,
    model_input,
    numpy_generator,
)
from sememe.video_as_prompt.stage_settings import BackboneSettings

__all__ = ["BackboneBatch", "BackboneSettings", "BackboneStage"]


@dataclass(frozen=True)
class BackboneBatch:
    """Clean latents and first frames (batch, channel, frame, height, width), token ids and mask (batch, token)."""

    clean: Tensor
    first_frames: Tensor
    ids: Tensor
    mask: Tensor


class BackboneStage:
    """The backbone and its text encoder as a stage of training; see `training.stage.Stage`.

    Conditions in `unnamed` are never named in a caption: the backbone meets them, and has no word for them.
    """

    name = "backbone"

    def __init__(
        self,
        transformer: nn.Module,
        text_encoder: nn.Module,
        tokenizer: Any,
        latents: LatentSource,
        settings: BackboneSettings,
        unnamed: AbstractSet[str] = frozenset(),
    ) -> None:
        self.transformer = transformer.train()
        self.text_encoder = text_encoder.train()
        self.tokenizer = tokenizer
        self.latents = latents
        self.settings = settings
        self._tokens = CaptionTokens(tokenizer)
        self._unnamed = np.array([condition in unnamed for condition in latents.conditions])

    def modules(self) -> Mapping[str, nn.Module]:
        return {"transformer": self.transformer, "text_encoder": self.text_encoder}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> BackboneBatch:
        rng, settings = numpy_generator(generator), self.settings
        picked = rng.integers(len(self._unnamed), size=settings.batch_size)
        choice = draw_captions(settings.captions, rng, num_targets=len(picked), unnamed_targets=self._unnamed[picked])
        neutral = [self.latents.captions[index] for index in picked]
        full = [self.latents.full_captions[index] for index in picked]
        ids, mask = self._tokens.tokenize(pick_captions(choice.targets, neutral, full))
        indices = torch.from_numpy(picked)
        clean, first_frames = self.latents.select_clean(indices), self.latents.select_condition(indices)
        return BackboneBatch(*(part.to(device) for part in (clean.float(), first_frames.float(), ids, mask)))

    def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
        settings = self.settings
        sigma = sample_sigma(len(batch.clean), generator, settings.sigma_mean, settings.sigma_std, settings.sigma_shift)
        noise = torch.randn(batch.clean.shape, generator=generator, device=batch.clean.device)
        noisy = add_noise(batch.clean, noise, sigma)
        text = embed_tokens(self.text_encoder, batch.ids, batch.mask)
        hidden = model_input(noisy, batch.first_frames, settings.num_mask_channels)
        predicted = self.transformer(hidden, timestep_of(sigma), text).sample
        losses = sample_losses(predicted, velocity_target(batch.clean, noise))
        return StepLoss(total=losses.sum(), num_samples=len(losses))

    def export(self, folder: Path, weights: Weights) -> None:
        """Write `transformer/`, `text_encoder/` and `tokenizer/`."""
        self.transformer.save_pretrained(folder / "transformer")  # type: ignore[operator]
        self.text_encoder.save_pretrained(folder / "text_encoder")  # type: ignore[operator]
        self.tokenizer.save_pretrained(folder / "tokenizer")
