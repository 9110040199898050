"""Train the reader of the evaluation on scripts of the world: subject, colour, place, and conditions over time.

Clips are shifted, so that position does not matter, and degraded a little by noise and blur, so that generated clips
are read as well as true renders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from sememe.data.array_cache import ArrayCache
from sememe.evaluation.reader import SceneReader
from sememe.semanticgen.arrays import LABELS, WORDS_ARRAY
from sememe.semanticgen.encoders import SampledFrames
from sememe.semanticgen.stage_settings import ReaderSettings
from sememe.training.dataset_clips import FRAMES_ARRAY
from sememe.training.held_out import ItemPicker
from sememe.training.stage import Stage, StepLoss, make_rng
from sememe.video.resizing import pick_frames

_CLIPS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class ReaderBatch:
    """Clips with their labels; cover is how much of each cell is subject."""

    video: SampledFrames
    cover: Float[Tensor, "batch moment row column"]
    labels: Mapping[str, Int[Tensor, " batch"]]
    conditions: Int[Tensor, "batch moment"]


class ReaderStage(Stage[ReaderBatch]):
    """Training stage of the reader; see `training.stage.Stage`.

    Args:
        reader: Network, whose vocabulary is that of the cache.
        cache: Scripts as pictures and as words (see `arrays.list_frames`), at least of the reader's size and rate.
        settings: Settings of the disturbances.
    """

    name = "reader"

    def __init__(self, reader: SceneReader, cache: ArrayCache, settings: ReaderSettings) -> None:
        self.reader, self.settings = reader.train().requires_grad_(True), settings
        num_frames, *_ = cache.arrays[FRAMES_ARRAY].shape
        fps = float(cache.describe(FRAMES_ARRAY)["fps"])
        picks = pick_frames(num_frames, sampling="fps", source_fps=fps, target_fps=reader.config.fps)
        self._picks = torch.from_numpy(picks)
        starts = range(0, len(cache), _CLIPS_AT_ONCE)
        self._seen = torch.cat(
            [self._shrink(cache, start, min(start + _CLIPS_AT_ONCE, len(cache))) for start in starts]
        )
        self._words = cache.select(WORDS_ARRAY, range(len(cache))).long()
        self.items: ItemPicker = ItemPicker(cache.scenes)

    def _shrink(self, cache: ArrayCache, start: int, stop: int) -> UInt8[Tensor, "clip moment 4 height width"]:
        """Return colours and cover of some clips at the reader's rate and size."""
        levels = cache.select(FRAMES_ARRAY, range(start, stop)).index_select(1, self._picks)[..., :4]
        # (clip, moment, height, width, number) -> (clip * moment, number, height, width)
        numbers = levels.permute(0, 1, 4, 2, 3).flatten(0, 1).float()
        shrunk = functional.adaptive_avg_pool2d(numbers, self.reader.config.size).round()
        return shrunk.to(torch.uint8).unflatten(0, levels.shape[:2])

    def modules(self) -> Mapping[str, nn.Module]:
        return {"reader": self.reader}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> ReaderBatch:
        rng, size, most = make_rng(generator), self.reader.config.size, self.settings.max_shift
        self._seen, self._words = self._seen.to(device), self._words.to(device)
        picked = torch.from_numpy(self.items.draw(rng, self.settings.batch_size)).to(device)
        levels, words = self._seen[picked], self._words[picked]
        # All clips of a batch are shifted by as much, with their edges repeated.
        down, right = (int(shift) for shift in rng.integers(-most, most + 1, size=2))
        padded = functional.pad(levels.flatten(0, 1).float() / 255, (most, most, most, most), mode="replicate")
        numbers = padded[..., most + down : most + down + size, most + right : most + right + size]
        cover = functional.adaptive_avg_pool2d(numbers[:, 3], size // 4)
        return ReaderBatch(
            video=(numbers[:, :3] * 2 - 1).unflatten(0, levels.shape[:2]).transpose(1, 2),
            cover=cover.unflatten(0, levels.shape[:2]),
            labels={name: words[:, place] for place, name in enumerate(LABELS)},
            conditions=words.index_select(1, len(LABELS) + self._picks.to(device)),
        )

    def loss(self, batch: ReaderBatch, generator: torch.Generator) -> StepLoss:
        found = self.reader(self._disturb(batch.video, generator))
        happening = functional.cross_entropy(found.conditions.flatten(0, 1).float(), batch.conditions.flatten())
        total = happening + functional.binary_cross_entropy_with_logits(found.cover.float(), batch.cover)
        right = found.conditions.argmax(dim=-1) == batch.conditions
        metrics = {"condition": right.float().mean()}
        for name, logits in found.labels.items():
            total = total + functional.cross_entropy(logits.float(), batch.labels[name])
            # Labels of each moment alone as well: so the network learns sooner what a frame shows.
            alone = self.reader.labels[name](found.features).float().flatten(0, 1)
            truth = batch.labels[name].repeat_interleave(found.features.shape[1])
            total = total + functional.cross_entropy(alone, truth)
            metrics[name] = (logits.argmax(dim=-1) == batch.labels[name]).float().mean()
        return StepLoss(total=total * len(batch.video), num_samples=len(batch.video), metrics=metrics)

    def _disturb(self, video: SampledFrames, generator: torch.Generator) -> SampledFrames:
        """Blur half of the clips by half the pixels, and add noise, more often little than much."""
        count, device = len(video), video.device
        blurred = functional.interpolate(
            functional.avg_pool3d(video, (1, 2, 2)), scale_factor=(1.0, 2.0, 2.0), mode="trilinear", align_corners=False
        )
        share = torch.rand(count, generator=generator, device=device) < self.settings.blurred_share
        video = torch.where(share.view(-1, 1, 1, 1, 1), blurred, video)
        level = self.settings.max_noise * torch.rand(count, generator=generator, device=device).square()
        noise = torch.randn(video.shape, generator=generator, device=device)
        return video + level.view(-1, 1, 1, 1, 1) * noise
