"""Train the built-in semantic encoder to say what the world shows.

The encoders of the paper have learned from videos and texts of the internet what matters in a video. The built-in one
learns it from the world, which knows: linear probes read subject, depth and colours at every place of both frames of a
slice, and the kinds of subject and backdrop of the whole. The probes are thrown away.
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
from sememe.semanticgen.encoders import QwenEncoder, SampledFrames
from sememe.semanticgen.shapes import EncoderFeatures
from sememe.semanticgen.stage_settings import EncoderSettings
from sememe.training.stage import Stage, StepLoss, Weights

_NUM_MAPS = 5  # subject, red, green, blue, depth

Maps = Float[Tensor, "batch slice row column reading"]
"""What there is to say of a place: `_NUM_MAPS` numbers for each frame of a slice, each from 0 to 1."""


@dataclass(frozen=True, eq=False)
class LabelledClip:
    """A clip of the world and what is known of it.

    Attributes:
        frames: Pictures.
        mask: How much of each pixel is subject, 0 to 1.
        depth: Nearness or distance of each pixel, 0 to 1.
        labels: Number of the value of each label; -1 for one that does not apply.
    """

    frames: UInt8[np.ndarray, "frame height width 3"]
    mask: Float[np.ndarray, "frame height width"]
    depth: Float[np.ndarray, "frame height width"]
    labels: Mapping[str, int]


@runtime_checkable
class LabelledClips(Protocol):
    """Labelled clips by number.

    Attributes:
        label_counts: How many values each label has.
        fps: Frames per second.
    """

    label_counts: Mapping[str, int]
    fps: float

    def __len__(self) -> int:
        """How many there are."""
        ...

    def read(self, index: int) -> LabelledClip:
        """Return a clip."""
        ...


@dataclass(frozen=True, eq=False)
class EncoderBatch:
    """Sampled frames, what there is to say of their places, and labels of the clips by name."""

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

    def forward(self, features: EncoderFeatures) -> tuple[Maps, dict[str, Float[Tensor, "batch slice value"]]]:
        """Return the maps, and for each label and slice the logits of its values."""
        normed = self.norm(features)
        pooled = normed.mean(dim=(2, 3))
        return self.maps(normed), {name: head(pooled) for name, head in self.labels.items()}


class EncoderStage(Stage):
    """Training stage of the built-in semantic encoder; see `training.stage.Stage`."""

    name = "semantic_encoder"

    def __init__(self, encoder: QwenEncoder, clips: LabelledClips, settings: EncoderSettings) -> None:
        self.encoder, self.clips, self.settings = encoder, clips, settings
        self.tower = encoder.tower.train().requires_grad_(True)
        self.probes = Probes(encoder.feature_dim, encoder.frames_per_slice, clips.label_counts).train()

    def modules(self) -> Mapping[str, nn.Module]:
        return {"semantic_encoder": self.tower, "probes": self.probes}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> EncoderBatch:
        picked = torch.randint(len(self.clips), (self.settings.batch_size,), generator=generator)
        clips = [self.clips.read(int(index)) for index in picked]
        picks = self.encoder.clock.pick_frames(len(clips[0].frames), self.clips.fps)
        grid = self.encoder.choose_grid(*clips[0].frames.shape[1:3])
        maps = torch.from_numpy(np.stack([_make_maps(clip, picks) for clip in clips]))
        labels = {
            name: torch.tensor([clip.labels[name] for clip in clips], device=device) for name in self.clips.label_counts
        }
        video = frames_to_video(np.stack([clip.frames[picks] for clip in clips]))
        return EncoderBatch(video.to(device), self._pool(maps, grid).to(device), labels)

    def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
        maps, logits = self.probes(self.encoder.encode_frames(batch.video))
        place = (maps.float() - batch.maps).square().mean(dim=(1, 2, 3, 4))
        total, metrics = place.sum(), {"places": place.mean().detach()}
        for name, values in logits.items():
            num_slices = values.shape[1]
            truth = batch.labels[name].repeat_interleave(num_slices)
            # A batch may have no clip that the label applies to: its sum is then 0, where a mean would not be a number.
            losses = functional.cross_entropy(values.float().flatten(0, 1), truth, ignore_index=-1, reduction="sum")
            total = total + self.settings.label_weight * losses / num_slices
            known = truth >= 0
            right = (values.flatten(0, 1).argmax(dim=-1) == truth) & known
            metrics[name] = (right.sum() / known.sum().clamp_min(1)).detach()
        return StepLoss(total=total, num_samples=len(place), metrics=metrics)

    def _pool(self, maps: Float[Tensor, "batch frame number height width"], grid: tuple[int, int]) -> Maps:
        """Average over the area of each feature, and put the frames of a slice beside each other."""
        batch, frames, numbers, *_ = maps.shape
        pooled = functional.adaptive_avg_pool2d(maps.flatten(0, 1), grid)
        per_slice = self.encoder.frames_per_slice
        # (batch * frame, number, row, column) -> (batch, slice, frame, number, row, column)
        split = pooled.view(batch, frames // per_slice, per_slice, numbers, *grid)
        return split.permute(0, 1, 4, 5, 2, 3).flatten(4)

    def export(self, folder: Path, weights: Weights) -> None:
        """Write `semantic_encoder/`."""
        self.tower.save_pretrained(folder / "semantic_encoder")


def _make_maps(
    clip: LabelledClip, picks: Int[np.ndarray, " picked"]
) -> Float[np.ndarray, "picked number height width"]:
    colours = np.moveaxis(clip.frames[picks].astype(np.float32) / 255, -1, 1)
    subject, depth = (part[picks][:, None].astype(np.float32) for part in (clip.mask, clip.depth))
    return np.concatenate([subject, colours, depth], axis=1)
