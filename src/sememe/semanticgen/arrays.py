"""Semantic features of clips as a named array of a cache."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sememe.backbones.autoencoder import frames_to_video
from sememe.checkpoints.zoo import find_part
from sememe.data.array_cache import ArrayCache, ArrayEncoder, ClipItem
from sememe.semanticgen.clocks import SliceClock
from sememe.semanticgen.encoders import SampledFrames, TowerEncoder, load_encoder
from sememe.semanticgen.shapes import EncoderFeatures
from sememe.semanticgen.stage_settings import SemanticLatentsRecipe
from sememe.training.clips import ClipCollection
from sememe.video import Clip, resize_clip

ARRAY = "semantic"


class SemanticArray:
    """Features of a semantic encoder, (clip, slice, row, column, feature_dim); see `data.array_cache.ArrayEncoder`."""

    name, key = ARRAY, "clip"

    def __init__(self, encoder: TowerEncoder, clips: ClipCollection, fps: float, device: torch.device) -> None:
        encoder.tower.to(device)
        self._encoder, self._clips, self._fps, self._device = encoder, clips, fps, device
        self.made_by: Mapping[str, str] = {
            "semantic_encoder": encoder.fingerprint,
            "semantic_fps": repr(encoder.clock.fps),
            "frames_per_slice": str(encoder.clock.frames_per_slice),
        }

    def list_entries(self, items: Sequence[ClipItem]) -> Mapping[str, Any]:
        return {item.clip: index for index, item in enumerate(items)}

    def preprocess(self, entries: Sequence[int]) -> SampledFrames:
        """Sampled frames of clips."""
        sampled = []
        for index in entries:
            frames = self._clips.frames(index)
            picks = self._encoder.clock.pick_frames(len(frames), self._fps)
            size = self._encoder.choose_size(*frames.shape[1:3])
            sampled.append(resize_clip(Clip(frames[picks], self._encoder.clock.fps), *size, "stretch").frames)
        return frames_to_video(np.stack(sampled)).to(self._device)

    def encode(self, inputs: SampledFrames) -> EncoderFeatures:
        return self._encoder.encode_frames(inputs)


def list_arrays(recipe: SemanticLatentsRecipe, clips: ClipCollection, device: torch.device) -> list[ArrayEncoder]:
    """Return the arrays that a recipe asks for beside those of all systems."""
    encoder = load_encoder(find_part(recipe.semantic_encoder, "semantic_encoder"), recipe.semantic_fps)
    return [SemanticArray(encoder, clips, recipe.clips.fps, device)]


def read_clock(cache: ArrayCache) -> SliceClock:
    """Return how the encoder of a cache's semantic features divides time.

    Raises:
        InputError: The cache has no semantic features.
    """
    made_by = cache.describe(ARRAY)
    return SliceClock(float(made_by["semantic_fps"]), int(made_by["frames_per_slice"]))
