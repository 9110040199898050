"""Scripts with what is known of them, and semantic features of clips, as named arrays of a cache."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sememe.backbones.autoencoder import frames_to_video
from sememe.checkpoints.zoo import find_part
from sememe.data.array_cache import ArrayCache
from sememe.data.array_writer import ArrayEncoder, ClipArray
from sememe.errors import InputError, RecipeError
from sememe.evaluation.reader import NOTHING, VOCABULARY, name_scene
from sememe.semanticgen.clocks import SliceClock
from sememe.semanticgen.encoders import SampledFrames, TowerEncoder, load_encoder
from sememe.semanticgen.shapes import EncoderFeatures
from sememe.semanticgen.stage_settings import SemanticFramesRecipe, SemanticLatentsRecipe
from sememe.training.clips import ClipCollection, ScriptClips
from sememe.training.dataset_clips import FRAMES_ARRAY
from sememe.video import Clip, resize_clip
from sememe.world.scripts import frame_edges

ARRAY, WORDS_ARRAY = "semantic", "words"
LABELS = tuple(name for name in VOCABULARY if name != "condition")
"""Words for a script as a whole, in the order in which the array of words holds their numbers."""
_NEAREST = 0.5  # distance from the camera that is stored as the largest nearness
_NUM_CHANNELS = 5


class ScriptFrames(ClipArray):
    """Scripts as pictures: colours, how much of each pixel is subject, and how near it is; all from 0 to 255."""

    name = FRAMES_ARRAY

    def __init__(self, clips: ScriptClips) -> None:
        self._clips = clips
        self.made_by: Mapping[str, str] = {"fps": repr(clips.fps), "channels": "red green blue cover nearness"}

    def preprocess(self, entries: Sequence[int]) -> UInt8[Tensor, "clip frame height width channel"]:
        shots = [self._clips.shot(index) for index in entries]
        known = [np.stack([shot.mask, (_NEAREST / shot.depth).clip(0, 1)], axis=-1) for shot in shots]
        levels = [(each * np.float32(255) + np.float32(0.5)).astype(np.uint8) for each in known]
        joined = [np.concatenate([shot.clip.frames, each], axis=-1) for shot, each in zip(shots, levels, strict=True)]
        return torch.from_numpy(np.stack(joined))


class ScriptWords(ClipArray):
    """Scripts as words: the number of each of `LABELS`, then of what happens in each frame."""

    name = WORDS_ARRAY

    def __init__(self, clips: ScriptClips) -> None:
        self._clips = clips
        self._numbers = {name: {value: i for i, value in enumerate(values)} for name, values in VOCABULARY.items()}
        self.made_by: Mapping[str, str] = {"words": ", ".join(f"{name} {len(VOCABULARY[name])}" for name in VOCABULARY)}

    def preprocess(self, entries: Sequence[int]) -> UInt8[Tensor, "clip word"]:
        return torch.tensor([self._name(index) for index in entries], dtype=torch.uint8)

    def _name(self, index: int) -> list[int]:
        script, numbers = self._clips.script(index), self._numbers
        found, edges = name_scene(script.scene), frame_edges(script.spans, self._clips.fps)
        words = [numbers["condition"][name or NOTHING] for name, _ in script.spans]
        return [numbers[name][found[name]] for name in LABELS] + np.repeat(words, np.diff(edges)).tolist()


def list_frames(recipe: SemanticFramesRecipe, clips: ClipCollection, device: torch.device) -> list[ArrayEncoder]:
    """Return the arrays of a `SemanticFramesRecipe`.

    Raises:
        RecipeError: The clips are not scripts, of which it is known what happens when.
    """
    if not isinstance(clips, ScriptClips):
        raise RecipeError(f"expected data.kind scripts, of which all is known, got clips of {clips.origin}")
    return [ScriptWords(clips), ScriptFrames(clips)]


def check_frames(cache: ArrayCache, folder: Path) -> None:
    """Check for a cache of a `SemanticFramesRecipe`.

    Raises:
        InputError: It holds something else.
    """
    shape = cache.arrays[FRAMES_ARRAY].shape if FRAMES_ARRAY in cache.arrays else ()
    if WORDS_ARRAY not in cache.arrays or shape[-1:] != (_NUM_CHANNELS,):
        raise InputError(
            f"expected scripts with what is known of them in {folder}, got {', '.join(cache.arrays)}; make them with "
            "`sememe precompute tiny-semantic-frames`"
        )


class SemanticArray(ClipArray):
    """Features of a semantic encoder, (clip, slice, row, column, feature_dim); see `data.array_writer.ArrayEncoder`."""

    name = ARRAY

    def __init__(self, encoder: TowerEncoder, clips: ClipCollection, fps: float, device: torch.device) -> None:
        encoder.tower.to(device)
        self._encoder, self._clips, self._fps, self._device = encoder, clips, fps, device
        self.made_by: Mapping[str, str] = {
            "semantic_encoder": encoder.fingerprint,
            "semantic_fps": repr(encoder.clock.fps),
            "frames_per_slice": str(encoder.clock.frames_per_slice),
        }

    def preprocess(self, entries: Sequence[int]) -> SampledFrames:
        """Return sampled frames of clips."""
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
