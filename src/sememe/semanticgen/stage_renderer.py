"""Train the renderer, and with it a compressor that was not trained before: latents from a text and a plan.

The source is arXiv 2512.20619, section 3.3.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from sememe.backbones.first_frame import mark_first_frame
from sememe.data.array_cache import ArrayCache
from sememe.diffusion.objectives import FLOW, sample_losses, sample_sigma
from sememe.semanticgen.arrays import ARRAY, read_clock
from sememe.semanticgen.clocks import LatentClock
from sememe.semanticgen.compressor import ChannelReport, SemanticCompressor
from sememe.semanticgen.network_renderer import SemanticGenTransformer
from sememe.semanticgen.noise import add_semantic_noise, draw_noise_levels
from sememe.semanticgen.shapes import EncoderFeatures, PlanFeatures, VideoLatents
from sememe.semanticgen.stage_settings import RendererSettings
from sememe.semanticgen.stage_texts import BatchTexts, ClipTexts
from sememe.semanticgen.windows import SliceShape, WindowLayout, make_layout
from sememe.training.held_out import ItemPicker
from sememe.training.samples import NUM_SAMPLES, Sampler
from sememe.training.stage import Stage, StepLoss, make_rng
from sememe.training.text_source import EncodedText, TextSource
from sememe.video.sheet import SheetRow

_NUM_FITTED_CLIPS = 256  # of many tokens each, for a fit of few numbers
_MOMENTUM = 0.01  # least share of a batch in the statistics of compressed features


@dataclass(frozen=True, eq=False)
class RendererBatch:
    """A batch of the renderer.

    Attributes:
        clean: Latents.
        first_frames: Latents of the first pictures; None for a backbone that takes none.
        has_image: Whether each clip's picture is given.
        semantic: Features of the encoder; None for a batch without plans.
        texts: Captions.
        momentum: Share of the batch in the statistics of compressed features, large in the first steps.
    """

    clean: VideoLatents
    first_frames: VideoLatents | None
    has_image: Tensor
    semantic: EncoderFeatures | None
    texts: BatchTexts
    momentum: float


class RendererStage(Stage[RendererBatch]):
    """Training stage of renderer, compressor and text encoder; see `training.stage.Stage`.

    Args:
        transformer: Starts from a backbone, which may take a first picture in further channels.
        compressor: Compressor of the cache's semantic features; frozen if none of its parameters requires a gradient.
        text: Text encoder, which is trained too, and tokenizer; or texts that were embedded by a frozen one.
        cache: Arrays "clean" and "semantic", and "first_frame" if the backbone takes pictures.
        settings: Settings of the losses.
        clock: Times of the latent frames.
        copied: Folders of parts that are exported as they are, by name: those of a frozen text encoder.
        sampler: Makes samples to look at; None for none.
    """

    name = "renderer"

    def __init__(
        self,
        transformer: SemanticGenTransformer,
        compressor: SemanticCompressor,
        text: TextSource,
        cache: ArrayCache,
        settings: RendererSettings,
        clock: LatentClock,
        copied: Mapping[str, Path] | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.sampler = sampler
        self.transformer, self.compressor = transformer.train(), compressor
        self.trains_compressor = any(parameter.requires_grad for parameter in compressor.parameters())
        compressor.train(self.trains_compressor)
        self.text, self.cache, self.settings, self._copied = text, cache, settings, copied or {}
        self._channels: ChannelReport | None = None
        self.items: ItemPicker = ItemPicker(cache.scenes)
        if isinstance(text, EncodedText):
            text.text_encoder.train()
        config: Any = transformer.config
        self._num_mask_channels = config.in_channels - 2 * config.out_channels
        _, *grid = cache.arrays["clean"].shape
        slices, rows, columns, _ = cache.arrays[ARRAY].shape
        slice_clock = read_clock(cache)
        self._texts = ClipTexts(cache, text, settings.captions, settings.segment_share, slice_clock)
        self._num_slices, plan = slices, SliceShape(slice_clock.times(slices), rows, columns)
        shape = (grid[0], grid[1] // config.patch_size[1], grid[2] // config.patch_size[2])
        self._layouts: dict[tuple[bool, int], WindowLayout] = {
            (has_plan, num_segments): make_layout(
                clock,
                shape,
                plan if has_plan else None,
                window_seconds=settings.window_seconds,
                segment_ends=slice_clock.inner_edges(num_segments),
            )
            for has_plan in (True, False)
            for num_segments in (1, slices)
        }

    @property
    def takes_image(self) -> bool:
        """Whether the backbone has channels for a first picture."""
        return self._num_mask_channels > 0

    def modules(self) -> Mapping[str, nn.Module]:
        text = {"text_encoder": self.text.text_encoder} if isinstance(self.text, EncodedText) else {}
        compressor = {"compressor": self.compressor} if self.trains_compressor else {}
        return {"transformer": self.transformer, **compressor, **text}

    def always_run(self) -> Collection[str]:
        # Batches without a plan have nothing to compress.
        return self.modules().keys() - {"compressor"}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> RendererBatch:
        rng, settings, cache = make_rng(generator), self.settings, self.cache
        picked = self.items.draw(rng, settings.batch_size)
        has_plan, has_image = rng.random() >= settings.drop_plan, rng.random(len(picked)) < settings.image_share
        indices = torch.from_numpy(picked)
        return RendererBatch(
            clean=cache.select("clean", indices).float().to(device),
            first_frames=cache.select("first_frame", indices).float().to(device) if self.takes_image else None,
            has_image=torch.from_numpy(has_image).to(device),
            semantic=cache.select(ARRAY, indices).float().to(device) if has_plan else None,
            texts=self._texts.draw(picked, self._num_slices, rng, device),
            momentum=max(_MOMENTUM, 1 / (step + 1)),
        )

    def loss(self, batch: RendererBatch, generator: torch.Generator) -> StepLoss:
        settings, noise = self.settings, self.settings.noise
        sigma = sample_sigma(len(batch.clean), generator, noise.mean, noise.std, noise.shift)
        noised = FLOW.draw(batch.clean, sigma, generator)
        channels = noised.noisy
        if batch.first_frames is not None:
            channels = join_picture(channels, batch.first_frames, self._num_mask_channels, batch.has_image)
        plan: PlanFeatures | None = None
        metrics: dict[str, Tensor] = {}
        divergence = torch.zeros((), device=batch.clean.device)
        if batch.semantic is not None:
            plan, divergence, metrics = self._compress(batch.semantic, batch.momentum, generator)
        texts = batch.texts.embed(self.text)
        layout = self._layouts[plan is not None, len(texts)]
        predicted = self.transformer(channels, noised.timesteps, texts, semantic=plan, layout=layout).sample
        losses = sample_losses(predicted, noised.target)
        total = losses.sum() + settings.kl_weight * divergence * len(losses)
        metrics = {"flow": losses.mean().detach(), **metrics}
        return StepLoss.of_samples(losses, noised.levels, total=total, metrics=metrics)

    def _compress(
        self, features: EncoderFeatures, momentum: float, generator: torch.Generator
    ) -> tuple[PlanFeatures, Tensor, dict[str, Tensor]]:
        """Return the plan that the renderer sees, the KL divergence, and what the channels carry."""
        settings = self.settings
        posterior = self.compressor.to(features.device)(features)  # a frozen one is no module of this stage
        drawn = posterior.sample(generator)
        if self.compressor.training:
            self.compressor.update_statistics(drawn.detach(), momentum)
        plan = self.compressor.normalise(drawn)
        levels = draw_noise_levels(settings.plan_noise, settings.plan_noise_tau, len(plan), generator)
        with torch.no_grad():
            self._channels = report = ChannelReport.of(posterior)
        metrics = {"kl": report.kl.sum(), "collapsed_channels": report.has_collapsed.float().sum()}
        return add_semantic_noise(plan, levels, generator), posterior.kl_loss(), metrics

    def sample(self, generator: torch.Generator, device: torch.device) -> Sequence[SheetRow]:
        """Render the plans of two clips, or their texts alone where the batch has no plans."""
        if self.sampler is None:
            return ()
        batch = self.batch(0, generator, device)
        clean, texts = batch.clean[:NUM_SAMPLES], tuple(each[:NUM_SAMPLES] for each in batch.texts.embed(self.text))
        plan = None if batch.semantic is None else self.compressor.to(device).encode(batch.semantic[:NUM_SAMPLES])

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            channels = noisy
            if batch.first_frames is not None:
                first_frames, has_image = batch.first_frames[:NUM_SAMPLES], batch.has_image[:NUM_SAMPLES]
                channels = join_picture(channels, first_frames, self._num_mask_channels, has_image)
            layout = self._layouts[plan is not None, len(texts)]
            return self.transformer(channels, timesteps, texts, semantic=plan, layout=layout).sample

        made = self.sampler.make(predict, clean, generator)
        return self.sampler.show({"true": clean, "made": made})

    def companions(self) -> Mapping[str, Any]:
        tokenizer = {"tokenizer": self.text.tokenizer} if isinstance(self.text, EncodedText) else {}
        return {"compressor": self.compressor, **tokenizer}

    def export(self, folder: Path) -> None:
        if self.trains_compressor and self._channels is not None:
            self._channels.warn()
        super().export(folder)
        for name, source in self._copied.items():
            shutil.copytree(source, folder / name)


def join_picture(
    noisy: VideoLatents, first_frames: VideoLatents, num_mask_channels: int, has_image: Shaped[Tensor, " batch"]
) -> Float[Tensor, "batch all_channel frame height width"]:
    """Append mask and latents of first pictures to noisy latents, on the channel axis; zeros where none is given."""
    condition = mark_first_frame(first_frames, num_mask_channels)
    return torch.cat([noisy, condition * has_image.view(-1, 1, 1, 1, 1)], dim=1)


@torch.no_grad()
def fit_semantic_embedding(
    transformer: SemanticGenTransformer, compressor: SemanticCompressor, cache: ArrayCache, clock: LatentClock
) -> None:
    """Set the projection of semantic tokens to the one that comes closest to tokens of clean latents.

    A backbone reads clean tokens of its own, but not those of a projection with random weights, and must first learn
    that they mean something. So each semantic token is made to resemble, by least squares over clips of the cache, the
    mean embedding of the latents of the time and the area that it covers. The paper does not say how the projection
    begins.

    Args:
        transformer: Renderer, whose `semantic_embedding` is changed.
        compressor: Makes plans of the features; its statistics must be those of the features.
        cache: Arrays "clean" and "semantic".
        clock: Times of the latent frames.
    """
    projection = transformer.semantic_embedding
    assert projection is not None
    embedding = copy.deepcopy(transformer.patch_embedding).float()
    assert isinstance(embedding, nn.Conv3d)
    _, num_frames, *_ = cache.arrays["clean"].shape
    num_slices, rows, columns, _ = cache.arrays[ARRAY].shape
    frames = torch.from_numpy(clock.frames_at(read_clock(cache).times(num_slices))).clamp(max=num_frames - 1)
    size = projection.in_features + 1
    gram = torch.zeros(size, size, dtype=torch.float64)
    products = torch.zeros(size, projection.out_features, dtype=torch.float64)
    for index in range(min(len(cache), _NUM_FITTED_CLIPS)):
        plan = compressor.encode(cache.select(ARRAY, [index]).float().cpu()).flatten(0, 3).double()
        inputs = nn.functional.pad(plan, (0, 1), value=1.0)
        clean = cache.select("clean", [index]).float().cpu()
        # Neither mask nor first picture is given.
        channels = nn.functional.pad(clean, (0, 0, 0, 0, 0, 0, 0, embedding.in_channels - clean.shape[1]))
        tokens = embedding(channels)[:, :, frames]  # (1, dim, slice, row, column)
        targets = nn.functional.adaptive_avg_pool3d(tokens, (num_slices, rows, columns)).flatten(2)[0].T.double()
        gram += inputs.T @ inputs
        products += inputs.T @ targets
    solution = torch.linalg.pinv(gram, hermitian=True) @ products
    projection.weight.copy_(solution[:-1].T)
    projection.bias.copy_(solution[-1])
