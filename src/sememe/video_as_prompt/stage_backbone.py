"""Trains the image-to-video backbone, and its text encoder with it, on cached latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sememe.data.caption_policy import draw_captions, pick_captions
from sememe.diffusion.objectives import FLOW, sample_losses, sample_sigma
from sememe.training.stage import Stage, StepLoss, Weights
from sememe.training.text_source import EncodedText
from sememe.video_as_prompt.families import TransformerAlone
from sememe.video_as_prompt.family_wan import WanFamily
from sememe.video_as_prompt.latent_batches import LatentSource, numpy_generator
from sememe.video_as_prompt.stage_settings import BackboneSettings

__all__ = ["BackboneBatch", "BackboneSettings", "BackboneStage"]


@dataclass(frozen=True)
class BackboneBatch:
    """Clean latents and first frames (batch, channel, frame, height, width); captions as `EncodedText` takes them."""

    clean: Tensor
    first_frames: Tensor
    text: Tensor


class BackboneStage(Stage):
    """The backbone and its text encoder as a stage of training; see `training.stage.Stage`.

    The captions of items for which `unnamed` (item,) is True never say what happens in them.
    """

    name = "backbone"

    def __init__(
        self,
        transformer: nn.Module,
        text_encoder: nn.Module,
        tokenizer: Any,
        latents: LatentSource,
        settings: BackboneSettings,
        unnamed: NDArray[np.bool_] | None = None,
    ) -> None:
        self.transformer = transformer.train()
        self.text_encoder = text_encoder.train()
        self.tokenizer = tokenizer
        self.latents = latents
        self.settings = settings
        self._text = EncodedText(tokenizer, text_encoder)
        self._family = WanFamily(TransformerAlone(transformer))
        self._unnamed = np.zeros(len(latents.conditions), bool) if unnamed is None else unnamed

    def modules(self) -> Mapping[str, nn.Module]:
        return {"transformer": self.transformer, "text_encoder": self.text_encoder}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> BackboneBatch:
        rng, settings = numpy_generator(generator), self.settings
        picked = rng.integers(len(self._unnamed), size=settings.batch_size)
        choice = draw_captions(settings.captions, rng, num_targets=len(picked), unnamed_targets=self._unnamed[picked])
        neutral = [self.latents.captions[index] for index in picked]
        full = [self.latents.full_captions[index] for index in picked]
        text = self._text.pick(pick_captions(choice.targets, neutral, full))
        indices = torch.from_numpy(picked)
        clean, first_frames = (self.latents.select(name, indices) for name in ("clean", "first_frame"))
        return BackboneBatch(*(part.to(device) for part in (clean.float(), first_frames.float(), text)))

    def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
        settings = self.settings
        sigma = sample_sigma(len(batch.clean), generator, settings.sigma_mean, settings.sigma_std, settings.sigma_shift)
        noise = torch.randn(batch.clean.shape, generator=generator, device=batch.clean.device)
        channels = self._family.join_condition(FLOW.add_noise(batch.clean, noise, sigma), batch.first_frames)
        predicted = self.transformer(channels, FLOW.timesteps(sigma), self._text.embed(batch.text)).sample
        losses = sample_losses(predicted, FLOW.target(batch.clean, noise, sigma))
        return StepLoss(total=losses.sum(), num_samples=len(losses))

    def export(self, folder: Path, weights: Weights) -> None:
        """Write `transformer/`, `text_encoder/` and `tokenizer/`."""
        self.transformer.save_pretrained(folder / "transformer")  # type: ignore[operator]
        self.text_encoder.save_pretrained(folder / "text_encoder")  # type: ignore[operator]
        self.tokenizer.save_pretrained(folder / "tokenizer")
