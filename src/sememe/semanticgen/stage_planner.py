"""Train the planner: compressed semantic features from a text (arXiv 2512.20619, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sememe.data.array_cache import ArrayCache
from sememe.diffusion.objectives import FLOW, sample_losses, sample_sigma
from sememe.semanticgen.arrays import ARRAY, read_clock
from sememe.semanticgen.clocks import LatentClock
from sememe.semanticgen.compressor import SemanticCompressor
from sememe.semanticgen.network_renderer import SemanticGenTransformer
from sememe.semanticgen.shapes import PlanFeatures
from sememe.semanticgen.stage_settings import PlannerSettings
from sememe.semanticgen.stage_texts import BatchTexts, ClipTexts
from sememe.semanticgen.windows import make_layout
from sememe.training.held_out import ItemPicker
from sememe.training.stage import Stage, StepLoss, make_rng
from sememe.training.text_source import TextSource


@dataclass(frozen=True, eq=False)
class PlannerBatch:
    """Plans with their captions."""

    plans: PlanFeatures
    texts: BatchTexts


class PlannerStage(Stage[PlannerBatch]):
    """Training stage of the planner; see `training.stage.Stage`.

    Args:
        planner: Transformer over plans.
        compressor: Compressor of the cache's semantic features; frozen.
        text: Texts by the frozen text encoder of the renderer, or embedded already.
        cache: Array "semantic".
        settings: Settings of the loss.
    """

    name = "planner"

    def __init__(
        self,
        planner: SemanticGenTransformer,
        compressor: SemanticCompressor,
        text: TextSource,
        cache: ArrayCache,
        settings: PlannerSettings,
    ) -> None:
        self.planner, self.text, self.cache, self.settings = planner.train(), text, cache, settings
        self.compressor = compressor.eval().requires_grad_(False)
        self.items: ItemPicker = ItemPicker(cache.scenes)
        slices, rows, columns, _ = cache.arrays[ARRAY].shape
        clock = read_clock(cache)
        self._texts = ClipTexts(cache, text, settings.captions, settings.segment_share, clock)
        self._layouts = {
            (count, num_segments): make_layout(
                LatentClock.of_slices(clock),
                (count, rows, columns),
                segment_ends=clock.inner_edges(num_segments),
            )
            for count in range(1, slices + 1)
            for num_segments in (1, count)
        }

    def modules(self) -> Mapping[str, nn.Module]:
        return {"planner": self.planner}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> PlannerBatch:
        rng, settings = make_rng(generator), self.settings
        picked = self.items.draw(rng, settings.batch_size)
        features = self.cache.select(ARRAY, torch.from_numpy(picked)).float().to(device)
        if rng.random() < settings.crop_share:
            features = features[:, : rng.integers(1, features.shape[1] + 1)]
        texts = self._texts.draw(picked, features.shape[1], rng, device)
        # Outside `loss`, so that it is computed in float32.
        return PlannerBatch(self.compressor.to(device).encode(features), texts)

    def loss(self, batch: PlannerBatch, generator: torch.Generator) -> StepLoss:
        noise = self.settings.noise
        clean = batch.plans.permute(0, 4, 1, 2, 3)  # (batch, semantic_dim, slice, row, column)
        sigma = sample_sigma(len(clean), generator, noise.mean, noise.std, noise.shift)
        noised = FLOW.draw(clean, sigma, generator)
        with torch.no_grad():
            texts = batch.texts.embed(self.text)
        layout = self._layouts[clean.shape[2], len(texts)]
        predicted = self.planner(noised.noisy, noised.timesteps, texts, layout=layout).sample
        return StepLoss.of_samples(sample_losses(predicted, noised.target), noised.levels)
