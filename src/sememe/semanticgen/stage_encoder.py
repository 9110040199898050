"""Train the built-in semantic encoder to tell what clips of the world show.

The encoders of the paper have learned from videos and texts of the internet what matters in a video. The built-in one
learns it from labels that the world gives: linear probes read cover, nearness and colours at every place of both
frames of a slice, kind and colour of the subject where it is seen, and the kind of the backdrop elsewhere. The probes
are thrown away.

The compressor is trained with it: probes read the same from the plans that it draws. From a renderer's gradient alone
it learns slowly what plans are for (docs/log.md, 2026-11-26), and a plan that does not say what kind of subject it
shows leaves that to the text alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sememe.data.array_cache import ArrayCache
from sememe.evaluation.reader import VOCABULARY
from sememe.semanticgen.arrays import LABELS, WORDS_ARRAY
from sememe.semanticgen.compressor import ChannelReport, SemanticCompressor
from sememe.semanticgen.encoders import QwenEncoder, SampledFrames, load_encoder
from sememe.semanticgen.noise import add_semantic_noise, draw_noise_levels
from sememe.semanticgen.shapes import EncoderFeatures, PlanFeatures
from sememe.semanticgen.stage_settings import EncoderSettings
from sememe.training.dataset_clips import FRAMES_ARRAY
from sememe.training.held_out import ItemPicker
from sememe.training.stage import Stage, StepLoss

_PLAN_NOISE = 0.2  # beside unit variance; without any, three of eight numbers came to carry all
_HEAD_DIM = 256
_MAX_ZOOM = 1.3  # or as much smaller
_NUM_MAPS = 5  # red, green, blue, subject, nearness
_COVER = [3, 3 + _NUM_MAPS]  # places of "subject" among the maps of the two frames of a slice

Maps = Float[Tensor, "batch slice row column reading"]
"""Labels of a place: `_NUM_MAPS` numbers for each frame of a slice, each in 0..1."""

Labels = dict[str, Float[Tensor, "batch slice row column value"]]
"""Logits of the values of each label at each place, by name."""

Pictures = Float[Tensor, "batch number frame height width"]
"""Frames with the `_NUM_MAPS` numbers of each pixel."""


@dataclass(frozen=True, eq=False)
class EncoderBatch:
    """Sampled frames, the labels of their places, and labels of the clips by name."""

    video: SampledFrames
    maps: Maps
    labels: Mapping[str, Int[Tensor, " batch"]]


class Probes(nn.Module):
    """Linear readings of features.

    Args:
        feature_dim: Numbers per feature.
        frames_per_slice: Frames per slice.
        label_counts: How many values each label has.
    """

    def __init__(self, feature_dim: int, frames_per_slice: int, label_counts: Mapping[str, int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(feature_dim)
        self.maps = nn.Linear(feature_dim, _NUM_MAPS * frames_per_slice)
        self.labels = nn.ModuleDict({name: nn.Linear(feature_dim, count) for name, count in label_counts.items()})

    def forward(self, features: EncoderFeatures) -> tuple[Maps, Labels]:
        """Return the maps, and for each label the logits of its values at each place."""
        normed = self.norm(features)
        return self.maps(normed), {name: head(normed) for name, head in self.labels.items()}


class PlanHead(nn.Module):
    """Readings of plans at each place: linear ones of maps; of labels after a layer over the few numbers of the place.

    Muon leaves modules of this name out: its steps are small for few numbers.
    """

    def __init__(self, semantic_dim: int, frames_per_slice: int, label_counts: Mapping[str, int]) -> None:
        super().__init__()
        self.maps = nn.Linear(semantic_dim, _NUM_MAPS * frames_per_slice)
        # It begins with the middle of the range, because plans have unit variance, and the maps have much less.
        nn.init.zeros_(self.maps.weight)
        nn.init.constant_(self.maps.bias, 0.5)
        self.places = nn.Sequential(nn.Linear(semantic_dim, _HEAD_DIM), nn.GELU())
        self.labels = nn.ModuleDict({name: nn.Linear(_HEAD_DIM, count) for name, count in label_counts.items()})

    def forward(self, plan: PlanFeatures) -> tuple[Maps, Labels]:
        """Return the maps, and for each label the logits of its values at each place."""
        places = self.places(plan)
        return self.maps(plan), {name: head(places) for name, head in self.labels.items()}


def _normalise(drawn: PlanFeatures) -> PlanFeatures:
    """Give draws zero mean and unit variance by their own statistics.

    Those of the compressor are set by the renderer's training, once its weights are final: averages of statistics lag
    behind weights that change, and those of averaged weights are others.
    """
    std, mean = torch.std_mean(drawn.flatten(0, -2), dim=0, correction=0)
    return (drawn - mean) / std.clamp_min(1e-6)


@dataclass(frozen=True, eq=False)
class LabelScores:
    """How well the values of a label are read where it is shown.

    Attributes:
        losses: Cross-entropy of each clip.
        right: Share that is right, over all clips.
    """

    losses: Float[Tensor, " batch"]
    right: Float[Tensor, ""]


def score_labels(
    logits: Float[Tensor, "batch slice row column value"],
    truth: Int[Tensor, " batch"],
    shown: Float[Tensor, "batch slice row column"],
) -> LabelScores:
    """Score the readings of a label at the places that show it.

    Args:
        logits: Logits of the values of a label.
        truth: The right value of each clip.
        shown: How much of each place shows it, 0 to 1. A clip with less than one place of it counts less.
    """
    everywhere = truth.view(-1, 1, 1, 1).expand(logits.shape[:-1])
    losses = functional.cross_entropy(logits.flatten(0, 3), everywhere.flatten(), reduction="none").view_as(shown)
    right = ((logits.argmax(dim=-1) == everywhere) * shown).sum() / shown.sum().clamp_min(1)
    return LabelScores((losses * shown).sum(dim=(1, 2, 3)) / shown.sum(dim=(1, 2, 3)).clamp_min(1), right.detach())


class EncoderStage(Stage[EncoderBatch]):
    """Training stage of the built-in semantic encoder; see `training.stage.Stage`.

    Args:
        encoder: Encoder with the tower that is trained.
        compressor: Compressor of its features, which is trained too.
        cache: Scripts as pictures and as words (see `arrays.list_frames`), of a size that the encoder need not resize.
        settings: Settings of the loss.
    """

    name = "semantic_encoder"

    def __init__(
        self, encoder: QwenEncoder, compressor: SemanticCompressor, cache: ArrayCache, settings: EncoderSettings
    ) -> None:
        self.encoder, self.cache, self.settings = encoder, cache, settings
        self.compressor = compressor.train()
        self._channels: ChannelReport | None = None
        self.items: ItemPicker = ItemPicker(cache.scenes)
        self.tower = encoder.tower.train().requires_grad_(True)
        label_counts = {name: len(VOCABULARY[name]) for name in LABELS}
        self.probes = Probes(encoder.feature_dim, encoder.frames_per_slice, label_counts).train()
        self.plan_head = PlanHead(compressor.config.semantic_dim, encoder.frames_per_slice, label_counts)
        num_frames, height, width, _ = cache.arrays[FRAMES_ARRAY].shape
        fps = float(cache.describe(FRAMES_ARRAY)["fps"])
        picks = torch.from_numpy(encoder.clock.pick_frames(num_frames, fps))
        self._picks = picks.unflatten(0, (-1, encoder.frames_per_slice))
        self._grid = encoder.choose_grid(height, width)

    def modules(self) -> Mapping[str, nn.Module]:
        probes = {"probes": self.probes, "plan_head": self.plan_head}
        return {"semantic_encoder": self.tower, "compressor": self.compressor, **probes}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> EncoderBatch:
        settings = self.settings
        places = torch.randint(len(self.items.places), (settings.batch_size,), generator=generator)
        picked = torch.from_numpy(self.items.places)[places]
        # (clip, slice of the batch) -> (clip, frame of the batch)
        slices = torch.rand(len(picked), len(self._picks), generator=generator).argsort(dim=1)[:, : settings.num_slices]
        frames = self._picks[slices].flatten(1)
        levels = self.cache.select(FRAMES_ARRAY, picked)
        levels = levels[torch.arange(len(levels))[:, None], frames.to(levels.device)].to(device)
        # (clip, frame, height, width, number) -> (clip, number, frame, height, width)
        numbers = self._move(levels.permute(0, 4, 1, 2, 3).float() / 255, generator)
        words = self.cache.select(WORDS_ARRAY, picked).to(device, torch.int64)
        labels = {name: words[:, place] for place, name in enumerate(LABELS)}
        return EncoderBatch(numbers[:, :3] * 2 - 1, self._pool(numbers), labels)

    def _move(self, numbers: Pictures, generator: torch.Generator) -> Pictures:
        """Mirror half of the clips, enlarge or shrink half, and shift all by whole pixels, with the edges repeated."""
        count, (height, width), most = len(numbers), numbers.shape[-2:], self.settings.max_shift
        mirrored, resized, size = torch.rand(3, count, generator=generator)
        scale = torch.where(resized < 0.5, _MAX_ZOOM ** (2 * size - 1), torch.ones(count))
        # In units of half the picture, as `affine_grid` has it.
        shift = torch.randint(-most, most + 1, (2, count), generator=generator) * 2 / torch.tensor([[width], [height]])
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0] = torch.where(mirrored < 0.5, -scale, scale)
        theta[:, 1, 1] = scale
        theta[:, :, 2] = shift.T
        pictures = numbers.flatten(1, 2)  # (batch, number * frame, height, width)
        grid = functional.affine_grid(theta.to(numbers.device), list(pictures.shape), align_corners=False)
        moved = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
        return moved.unflatten(1, numbers.shape[1:3])

    def loss(self, batch: EncoderBatch, generator: torch.Generator) -> StepLoss:
        features = self.encoder.encode_frames(batch.video)
        posterior = self.compressor(features)
        plan = _normalise(posterior.sample(generator))
        levels = draw_noise_levels("half_normal", _PLAN_NOISE, len(plan), generator)
        plan = add_semantic_noise(plan, levels, generator)
        maps, logits = self.probes(features)
        plan_maps, plan_logits = self.plan_head(plan)
        errors = ((found.float() - batch.maps).square() for found in (maps, plan_maps))
        place, plan_place = (each.mean(dim=(1, 2, 3, 4)) for each in errors)
        divergence = posterior.kl_loss()
        total = (place + plan_place).sum() + self.settings.kl_weight * divergence * len(place)
        with torch.no_grad():
            self._channels = ChannelReport.of(posterior)
        metrics = {
            "places": place.mean().detach(),
            "plan_places": plan_place.mean().detach(),
            "kl": divergence.detach(),
            "collapsed_channels": self._channels.has_collapsed.float().sum(),
        }
        cover = batch.maps[..., _COVER].mean(dim=-1)
        shown = {"subject": cover, "colour": cover, "place": 1 - cover}
        for prefix, found in (("", logits), ("plan_", plan_logits)):
            for name, values in found.items():
                scores = score_labels(values.float(), batch.labels[name], shown[name])
                total = total + self.settings.label_weight * scores.losses.sum()
                metrics[prefix + name] = scores.right
        return StepLoss(total=total, num_samples=len(place), metrics=metrics)

    def _pool(self, numbers: Pictures) -> Maps:
        """Average over the area of each feature, and put the frames of a slice beside each other."""
        # (batch, number, frame, height, width) -> (batch, number, frame, row, column)
        pooled = functional.adaptive_avg_pool2d(numbers.flatten(0, 1), self._grid).unflatten(0, numbers.shape[:2])
        # -> (batch, number, slice, frame, row, column) -> (batch, slice, row, column, frame, number)
        split = pooled.unflatten(2, (-1, self.encoder.frames_per_slice))
        return split.permute(0, 2, 4, 5, 3, 1).flatten(4)

    def export(self, folder: Path) -> None:
        """Write `semantic_encoder/` and `compressor/`."""
        if self._channels is not None:
            self._channels.warn()
        self.tower.save_pretrained(folder / "semantic_encoder")
        # The compressor is for the trained weights, whose fingerprint differs from that at the beginning.
        exported = load_encoder(folder / "semantic_encoder", self.encoder.clock.fps)
        self.compressor.register_to_config(encoder=exported.fingerprint)
        self.compressor.save_pretrained(folder / "compressor")
