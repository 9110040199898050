"""Frames with their depth, structure and content of clips as named arrays of a cache."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sememe.checkpoints.components import load_component
from sememe.checkpoints.fingerprint import fingerprint_model
from sememe.checkpoints.zoo import find_part
from sememe.data.array_cache import ArrayCache
from sememe.data.array_writer import ArrayEncoder, ClipArray
from sememe.errors import RecipeError
from sememe.gen1.content import embed_images
from sememe.gen1.prior import identify_space
from sememe.gen1.stage_settings import Gen1ContentRecipe, Gen1FramesRecipe, Gen1LatentsRecipe
from sememe.gen1.structure import DepthEstimator, normalise
from sememe.training.clips import ClipCollection, LookClips
from sememe.training.dataset_clips import FRAMES_ARRAY

STRUCTURE_ARRAY, CONTENT_ARRAY = "structure", "content"
_FRAMES_AT_ONCE = 256
Frames = UInt8[Tensor, "clip frame height width 3"]


class FramesAndDepth(ClipArray):
    """Frames, colours 0 to 255, and the distance of every pixel as a fourth channel."""

    name = FRAMES_ARRAY

    def __init__(self, clips: LookClips) -> None:
        self._clips = clips
        self.made_by: Mapping[str, str] = {"depth": "distance"}

    def preprocess(self, entries: Sequence[int]) -> Float[Tensor, "clip frame height width 4"]:
        shots = [self._clips.shot(index) for index in entries]
        joined = [np.concatenate([shot.clip.frames, shot.depth[..., None]], axis=-1) for shot in shots]
        return torch.from_numpy(np.stack(joined).astype(np.float32))


class _OfFrames(ClipArray):
    """Outputs of a network for frames."""

    def __init__(self, clips: ClipCollection) -> None:
        self._clips = clips

    def preprocess(self, entries: Sequence[int]) -> Frames:
        return torch.from_numpy(np.stack([self._clips.frames(index) for index in entries]))


class StructureArray(_OfFrames):
    """Depth of clips, (clip, frame, height, width) in [0, 1], as the pipeline estimates it."""

    name = STRUCTURE_ARRAY

    def __init__(self, clips: ClipCollection, source: str, device: torch.device) -> None:
        super().__init__(clips)
        folder = find_part(source, "depth_estimator")
        processor = load_component("depth_processor", find_part(source, "depth_processor"))
        model = load_component("depth_estimator", folder).to(device)
        self._estimator = DepthEstimator(model, processor, _FRAMES_AT_ONCE)
        self.made_by: Mapping[str, str] = {"depth_estimator": fingerprint_model(folder).sha256}

    def encode(self, inputs: Frames) -> Float[Tensor, "clip frame height width"]:
        found = self._estimator.estimate(inputs.flatten(0, 1).numpy()).unflatten(0, (len(inputs), -1))
        return torch.stack([normalise(maps) for maps in found])


class ContentArray(_OfFrames):
    """Image embeddings of all frames, (clip, frame, dim)."""

    name = CONTENT_ARRAY

    def __init__(self, clips: ClipCollection, source: str, device: torch.device) -> None:
        super().__init__(clips)
        self._encoder = load_component("image_encoder", find_part(source, "image_encoder")).to(device)
        self._processor = load_component("image_processor", find_part(source, "image_processor"))
        self.made_by: Mapping[str, str] = {"image_encoder": identify_space(self._encoder)}

    def encode(self, inputs: Frames) -> Float[Tensor, "clip frame dim"]:
        embeddings = embed_images(self._encoder, self._processor, list(inputs.flatten(0, 1).numpy()))
        return embeddings.unflatten(0, (len(inputs), -1))


def list_frames(recipe: Gen1FramesRecipe, clips: ClipCollection, device: torch.device) -> list[ArrayEncoder]:
    """Return the arrays of a `Gen1FramesRecipe`.

    Raises:
        RecipeError: The clips are not looks of the world, whose depth is known.
    """
    if not isinstance(clips, LookClips):
        raise RecipeError(f"expected data.kind looks, whose depth is known, got clips of {clips.origin}")
    return [FramesAndDepth(clips)]


def list_content(recipe: Gen1ContentRecipe, clips: ClipCollection, device: torch.device) -> list[ArrayEncoder]:
    """Return the arrays of a `Gen1ContentRecipe`."""
    return [ContentArray(clips, recipe.image_encoder, device)]


def list_arrays(recipe: Gen1LatentsRecipe, clips: ClipCollection, device: torch.device) -> list[ArrayEncoder]:
    """Return the arrays that a `Gen1LatentsRecipe` asks for beside latents."""
    return [
        StructureArray(clips, recipe.depth_estimator, device),
        ContentArray(clips, recipe.image_encoder, device),
    ]


def pick_frames(cache: ArrayCache, name: str, clips: np.ndarray, frames: np.ndarray) -> Float[Tensor, "picked ..."]:
    """Return a frame of each of some clips, out of an array (clip, frame, ...), as float32.

    Args:
        cache: Cache with the array.
        name: Its name.
        clips: Numbers of the clips.
        frames: Number of the frame of each.
    """
    values = cache.select(name, torch.from_numpy(clips))
    return values[torch.arange(len(clips), device=values.device), torch.from_numpy(frames).to(values.device)].float()
