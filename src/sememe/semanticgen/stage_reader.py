"""Train the reader of the evaluation to say of scripts of the world who is where, and what happens when.

Its clips are made a little worse, by noise and blur, so that what a model generates is read as well as true renders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from sememe.backbones.autoencoder import frames_to_video
from sememe.evaluation.reader import SceneReader
from sememe.semanticgen.encoders import SampledFrames
from sememe.semanticgen.stage_settings import ReaderSettings
from sememe.training.stage import Stage, StepLoss, Weights


@dataclass(frozen=True, eq=False)
class NarratedClip:
    """A clip of the world with its labels.

    Attributes:
        frames: Pictures at the reader's rate and size.
        mask: How much of each pixel is subject, 0 to 1.
        labels: Number of the value of each label.
        conditions: Number of what happens at each moment.
    """

    frames: UInt8[np.ndarray, "moment height width 3"]
    mask: Float[np.ndarray, "moment height width"]
    labels: Mapping[str, int]
    conditions: Int[np.ndarray, " moment"]


@runtime_checkable
class NarratedClips(Protocol):
    """Narrated clips by number."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def read(self, index: int) -> NarratedClip:
        """Return a clip."""
        ...


@dataclass(frozen=True, eq=False)
class ReaderBatch:
    """Clips with their labels; cover is how much of each cell is subject."""

    video: SampledFrames
    cover: Float[Tensor, "batch moment row column"]
    labels: Mapping[str, Int[Tensor, " batch"]]
    conditions: Int[Tensor, "batch moment"]


class ReaderStage(Stage):
    """Training stage of the reader; see `training.stage.Stage`."""

    name = "reader"

    def __init__(self, reader: SceneReader, clips: NarratedClips, settings: ReaderSettings) -> None:
        self.reader, self.clips, self.settings = reader.train().requires_grad_(True), clips, settings

    def modules(self) -> Mapping[str, nn.Module]:
        return {"reader": self.reader}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> ReaderBatch:
        picked = torch.randint(len(self.clips), (self.settings.batch_size,), generator=generator)
        clips = [self.clips.read(int(index)) for index in picked]
        masks = torch.from_numpy(np.stack([clip.mask for clip in clips]).astype(np.float32))
        side = self.reader.config.size // 4
        return ReaderBatch(
            video=frames_to_video(np.stack([clip.frames for clip in clips])).to(device),
            cover=functional.adaptive_avg_pool2d(masks, side).to(device),
            labels={
                name: torch.tensor([clip.labels[name] for clip in clips], device=device) for name in clips[0].labels
            },
            conditions=torch.from_numpy(np.stack([clip.conditions for clip in clips])).to(device),
        )

    def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
        found = self.reader(self._disturb(batch.video, generator))
        happening = functional.cross_entropy(found.conditions.flatten(0, 1).float(), batch.conditions.flatten())
        total = happening + functional.binary_cross_entropy_with_logits(found.cover.float(), batch.cover)
        right = found.conditions.argmax(dim=-1) == batch.conditions
        metrics = {"condition": right.float().mean()}
        for name, logits in found.labels.items():
            total = total + functional.cross_entropy(logits.float(), batch.labels[name])
            # Each moment alone as well, which teaches what a frame shows sooner.
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

    def export(self, folder: Path, weights: Weights) -> None:
        """Write `reader/`."""
        self.reader.save_pretrained(folder / "reader")
