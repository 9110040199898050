"""Structure of a clip: maps in [0, 1], how they are estimated, and how much of them is kept (arXiv 2302.03011, 3.3).

The paper's structure is depth. Edges and motion stand behind the same protocol. A model knows the kinds that it was
trained on; others, and mixtures, are experiments.
"""

import itertools
import math
from collections.abc import Callable, Mapping

import cv2
import numpy as np
import torch
from diffusers.utils.torch_utils import get_module_execution_device
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from transformers import BaseImageProcessor, PreTrainedModel

from sememe.backbones.pictures import read_pictures
from sememe.errors import InputError
from sememe.gen1.settings import MAX_LEVEL
from sememe.gen1.shapes import Structure
from sememe.video import Clip, resize_clip

Maps = Float[Tensor, "batch frame height width"]

NUM_LEVEL_CHANNELS = 4
# The longest period spans all levels once and a gap, so that the first pair alone tells them apart.
_PERIODS = (2.0 * (MAX_LEVEL + 1), 4.0)
# Blur of one round: a Gaussian of standard deviation 1 at 5 places.
_KERNEL = torch.tensor([math.exp(-(offset**2) / 2) for offset in range(-2, 3)])
_KERNEL /= _KERNEL.sum()


StructureEstimator = Callable[[Clip], Structure]
"""Returns a map of each frame, of its size, in [0, 1]."""


class DepthEstimator:
    """Depth by a network of transformers; 1 is nearest and 0 farthest in the clip.

    Each frame is estimated alone; the scale is the same for all frames, so that maps do not flicker with it. The paper
    uses MiDaS DPT-Large ("Intel/dpt-large"). Depth-Anything is lighter ("depth-anything/Depth-Anything-V2-Small-hf").

    Args:
        model: `DPTForDepthEstimation` or `DepthAnythingForDepthEstimation` with relative depth (larger is nearer).
        processor: `DPTImageProcessorPil`, as the model's folder describes it.
        batch_size: Frames that are estimated at once.
    """

    def __init__(self, model: PreTrainedModel, processor: BaseImageProcessor, batch_size: int = 4) -> None:
        self.model, self.processor, self.batch_size = model, processor, batch_size

    def __call__(self, clip: Clip) -> Structure:
        """Estimate the depth of each frame."""
        return normalise(self.estimate(clip.frames))

    @torch.no_grad()
    def estimate(self, frames: UInt8[np.ndarray, "frame height width 3"]) -> Structure:
        """Estimate the depth of each frame on the network's own scale, which has no fixed ends; larger is nearer."""
        parts = (frames[start : start + self.batch_size] for start in range(0, len(frames), self.batch_size))
        return torch.cat([self.predict(part).cpu() for part in parts])

    def predict(self, frames: UInt8[np.ndarray, "frame height width 3"]) -> Structure:
        """Estimate the depth of frames at once, on the network's device."""
        pixels = read_pictures(frames, self.processor, get_module_execution_device(self.model))
        depth = self.model(pixels.to(self.model.dtype)).predicted_depth.float().unsqueeze(1)
        return F.interpolate(depth, frames.shape[1:3], mode="bilinear", align_corners=False).squeeze(1)


def find_edges(clip: Clip) -> Structure:
    """Find edges by Canny's method: 1 on an edge, 0 elsewhere."""
    found = [cv2.Canny(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 100, 200) for frame in clip.frames]
    return torch.from_numpy(np.stack(found)).float() / 255.0


def find_motion(clip: Clip) -> Structure:
    """Find the speed of each pixel, not its direction, by Farneback's optical flow to the next frame; 1 is the fastest.

    The last frame has the speeds of the one before it; a clip of one frame has none. OpenCV's DIS flow is not used,
    because that of OpenCV 5.0.0 once ended the process (a read of memory that was not its own).
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip.frames]
    if len(grey) < 2:
        return torch.zeros(clip.num_frames, *clip.size)
    flows = [cv2.calcOpticalFlowFarneback(*pair, None, 0.5, 3, 15, 3, 5, 1.2, 0) for pair in itertools.pairwise(grey)]  # type: ignore[call-overload]
    speeds = [np.linalg.norm(flow, axis=2) for flow in flows]
    maps = torch.from_numpy(np.stack([*speeds, speeds[-1]])).float()
    return maps / maps.max().clamp(min=1e-6)


def normalise(maps: Structure) -> Structure:
    """Scale to [0, 1], by the least and the largest value of the whole clip; maps without any difference are 0."""
    low, high = maps.min(), maps.max()
    return (maps - low) / (high - low) if high > low else torch.zeros_like(maps)


def estimate_structure(
    clip: Clip, weights: Mapping[str, float], estimators: Mapping[str, StructureEstimator]
) -> Structure:
    """Estimate one or several kinds of structure and mix them: the mean of their maps, by weight.

    Args:
        clip: Source.
        weights: Weight above 0 by kind, at least one; they need not add up to 1.
        estimators: Estimator of each kind.

    Raises:
        InputError: A kind has no estimator.
    """
    for kind in weights:
        if kind not in estimators:
            reason = "; the model has no depth_estimator: load one, or give structure=" if kind == "depth" else ""
            raise InputError(f"expected structure of the kinds {', '.join(estimators)}, got {kind!r}{reason}")
    total = sum(weights.values())
    maps = [estimators[kind](clip) * (weight / total) for kind, weight in weights.items()]
    return torch.stack(maps).sum(dim=0)


def read_structure(given: Clip, source: Clip) -> Structure:
    """Return the structure that a clip shows, as grey levels: white is 1, for depth the nearest.

    It is resized to the source, and frames beyond the source's are left out.

    Raises:
        InputError: It is shorter than the source.
    """
    if given.num_frames < source.num_frames:
        raise InputError(
            f"expected a structure clip of at least the source's {source.num_frames} frames, got {given.num_frames}; "
            "shorten the source or give a longer one"
        )
    frames = resize_clip(Clip(given.frames[: source.num_frames], given.fps), *source.size).frames
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    return torch.from_numpy(np.stack(grey)).float() / 255.0


def show_structure(maps: Structure, fps: float) -> Clip:
    """Return structure as a grey clip; `read_structure` reads it again, to within half a grey level."""
    levels = maps.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return Clip(levels.unsqueeze(-1).expand(-1, -1, -1, 3).contiguous().cpu().numpy(), fps)


def simplify_structure(maps: Maps, level: int) -> Maps:
    """Take detail out of structure: `level` rounds of blur and halving, then back to the size (section 3.3).

    The paper gives the number of rounds (0 to 7), not kernel and factor. A round here is a Gaussian blur of standard
    deviation 1 over 5 pixels, and half the height and width, rounded down, at least 1 pixel.

    Args:
        maps: Structure of a batch of clips.
        level: Number of rounds; 0 returns the maps as they are.

    Raises:
        InputError: The level is not in 0..7.
    """
    if not 0 <= level <= MAX_LEVEL:
        raise InputError(f"expected structure_level in 0..{MAX_LEVEL}, got {level}")
    if level == 0:
        return maps
    kernel = _KERNEL.to(maps).view(1, 1, -1, 1)
    current = maps.flatten(0, 1).unsqueeze(1)
    for _ in range(level):
        current = F.conv2d(F.pad(current, (0, 0, 2, 2), mode="replicate"), kernel)
        current = F.conv2d(F.pad(current, (2, 2, 0, 0), mode="replicate"), kernel.transpose(2, 3))
        height, width = current.shape[-2:]
        current = F.adaptive_avg_pool2d(current, (max(1, height // 2), max(1, width // 2)))
    current = F.interpolate(current, maps.shape[-2:], mode="bilinear", align_corners=False)
    return current.squeeze(1).unflatten(0, maps.shape[:2])


def embed_level(level: Float[Tensor, " batch"]) -> Float[Tensor, "batch 4"]:
    """Return a structure level as sines and cosines, which enter the network as channels of constant value."""
    angles = [2.0 * math.pi * level / period for period in _PERIODS]
    return torch.stack([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
