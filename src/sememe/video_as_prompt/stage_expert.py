"""Train the expert that reads the reference, on a frozen backbone and cached latents.

Three choices make the reference matter: captions never name the condition, captions of target and reference and the
reference itself are dropped independently, and batches hold the same scene under different conditions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sememe.data.caption_policy import draw_captions, pick_captions
from sememe.data.pairing import PairSampler
from sememe.diffusion.objectives import FLOW, NoisePath, sample_losses, sample_sigma
from sememe.training.stage import Stage, StepLoss, Weights
from sememe.training.text_source import TextSource
from sememe.video_as_prompt.backbone_family import ForwardInputs
from sememe.video_as_prompt.expert_model import ExpertModel
from sememe.video_as_prompt.families import TransformerAlone, choose_family
from sememe.video_as_prompt.latent_batches import LatentSource, numpy_generator
from sememe.video_as_prompt.references import ReferenceCache, ReferenceInputs, ReferenceTokens
from sememe.video_as_prompt.stage_settings import ExpertSettings

__all__ = ["ExpertBatch", "ExpertSettings", "ExpertStage"]


@dataclass(frozen=True)
class ExpertBatch:
    """Clean latents, first-frame latents and captions of targets and references.

    Captions have the form of the `TextSource`. `owners` holds the index of each target's reference.
    """

    clean: Tensor
    first_frames: Tensor
    text: Tensor
    reference_clean: Tensor
    reference_first_frames: Tensor
    reference_text: Tensor
    owners: Tensor


class ExpertStage(Stage):
    """Training stage of the expert; see `training.stage.Stage`.

    Targets drawn without a reference are left out, because only the frozen backbone predicts them.
    """

    name = "expert"

    def __init__(
        self,
        transformer: ExpertModel,
        text: TextSource,
        latents: LatentSource,
        settings: ExpertSettings,
        path: NoisePath = FLOW,
    ) -> None:
        transformer.freeze_backbone()
        self.transformer: Any = transformer.train()  # type: ignore[attr-defined]
        self.text = text
        self.latents = latents
        self.settings = settings
        self._path = path
        self._family = choose_family(TransformerAlone(transformer))
        self._pairs = PairSampler(latents.conditions, latents.scenes, same_scene_share=settings.same_scene_share)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"transformer": self.transformer}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> ExpertBatch:
        settings, rng = self.settings, numpy_generator(generator)
        pairs = self._pairs.draw(rng, settings.num_references, settings.targets_per_reference)
        choice = draw_captions(
            settings.captions, rng, num_targets=len(pairs.targets), num_references=len(pairs.references)
        )
        kept = np.flatnonzero(~choice.dropped_references)
        # A batch needs a target.
        kept = kept if len(kept) else np.arange(1)
        parts: list[Tensor] = []
        for picked, kinds in (
            (pairs.targets[kept], choice.targets[kept]),
            (pairs.references, choice.references),
        ):
            neutral = [self.latents.captions[index] for index in picked]
            full = [self.latents.full_captions[index] for index in picked]
            indices = torch.from_numpy(picked)
            parts += [self.latents.select(name, indices).float() for name in ("clean", "first_frame")]
            parts.append(self.text.pick(pick_captions(kinds, neutral, full)))
        parts.append(torch.from_numpy(kept // settings.targets_per_reference))
        return ExpertBatch(*(part.to(device) for part in parts))

    def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
        settings, family, path = self.settings, self._family, self._path
        sigma = sample_sigma(len(batch.clean), generator, settings.sigma_mean, settings.sigma_std, settings.sigma_shift)
        noise = torch.randn(batch.clean.shape, generator=generator, device=batch.clean.device)
        channels = family.join_condition(path.add_noise(batch.clean, noise, sigma), batch.first_frames)
        reference = family.join_condition(batch.reference_clean, batch.reference_first_frames)
        with torch.no_grad():
            text, reference_text = self.text.embed(batch.text), self.text.embed(batch.reference_text)
        inputs = ForwardInputs(channels, path.timesteps(sigma), text)
        predicted = family.predict(inputs, self._encode(reference, reference_text, batch.owners))
        losses = sample_losses(predicted, path.target(batch.clean, noise, sigma))
        return StepLoss(total=losses.sum(), num_samples=len(losses))

    def _encode(self, reference: Tensor, text: Tensor, owners: Tensor) -> ReferenceCache | ReferenceTokens:
        """Encode references, once each in one-way mode, and assign them to the targets that read them."""
        if self.transformer.config.attention_mode == "cached":
            cache = self._family.encode_reference(ReferenceInputs((reference,), (text,)))
            return cache.map(lambda tensor: tensor.index_select(0, owners))
        return self._family.embed_reference(ReferenceInputs((reference[owners],), (text[owners],)))

    def export(self, folder: Path, weights: Weights) -> None:
        """Write `expert/` alone; it goes beside the backbone's `transformer/`."""
        self.transformer.save_expert(folder / "expert")
