"""Masked edits: white is edited, and outside the decoded frames are the source's, bit for bit.

While denoising, latents outside the mask are those of the source at the same noise; decoded frames are put over the
source at the end. The paper shows masked edits and does not say how they are made.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import SchedulerMixin
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from sememe.errors import InputError
from sememe.gen1.shapes import Latents
from sememe.video import Clip, resize_clip, to_picture

Mask = Bool[np.ndarray, "frame height width"]


def read_mask(given: Any, num_frames: int, original_size: tuple[int, int], size: tuple[int, int]) -> Mask:
    """Return where a clip is edited.

    A mask of another size is resized like the source, if it has the source's proportions to within a pixel. A mask of
    one frame serves for all; otherwise its frames are those of the source, whatever its rate, and more are left out.

    Args:
        given: Clip, PIL image, or a uint8 array (height, width, 3); light pixels (128 and above) are edited,
            and transparent ones.
        num_frames: Frames of the source.
        original_size: Height and width of the source as it was given.
        size: Height and width of the result.

    Raises:
        InputError: It is shorter than the source, has other proportions, or nothing in it is white.
    """
    clip = given if isinstance(given, Clip) else Clip.from_image(to_picture(given))
    if 1 < clip.num_frames < num_frames:
        raise InputError(
            f"expected a mask of 1 frame or of at least the source's {num_frames}, got {clip.num_frames}; make it as "
            "long"
        )
    (height, width), (own_height, own_width) = original_size, clip.size
    if abs(own_width - width * own_height / height) > 1 and abs(own_height - height * own_width / width) > 1:
        raise InputError(
            f"expected a mask with the proportions of the source ({width}x{height}, width x height), got "
            f"{own_width}x{own_height}; crop or scale it as the source"
        )
    frames = resize_clip(Clip(clip.frames[:num_frames], clip.fps), *size).frames
    mask = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]) >= 128
    if not mask.any():
        raise InputError("expected a mask with white where the clip is to be edited, got one without any white")
    return np.broadcast_to(mask, (num_frames, *size)).copy()


@dataclass(frozen=True)
class MaskedLatents:
    """Latents of the source, which those outside a mask are held at.

    Attributes:
        source: Latents of the source (batch, channel, frame, height, width).
        noise: Noise that the generation started from, of the same shape.
        edited: 1 where latents are free, of shape (batch, 1, frame, height, width).
    """

    source: Latents
    noise: Latents
    edited: Float[Tensor, "batch 1 frame latent_height latent_width"]

    @classmethod
    def from_masks(cls, masks: list[Mask], source: Latents, noise: Latents) -> "MaskedLatents":
        """Make them of masks in pixels: a latent is free if any of its pixels is edited."""
        pixels = torch.from_numpy(np.stack(masks)).float().to(source.device)
        edited = F.adaptive_max_pool2d(pixels, source.shape[-2:]).unsqueeze(1)
        return cls(source, noise, edited)

    def hold(self, scheduler: SchedulerMixin, latents: Latents, step: int) -> Latents:
        """Return latents after a step, counted from 0, with the source at the same noise outside the mask."""
        kept = self.source
        if step + 1 < len(scheduler.timesteps):
            following = scheduler.timesteps[step + 1].reshape(1).expand(len(latents))
            kept = scheduler.add_noise(self.source, self.noise, following)
        return torch.where(self.edited.bool(), latents, kept)


def put_over(source: Clip, result: Clip, mask: Mask, feather: int = 0) -> Clip:
    """Return the result inside the mask, and the source outside, bit for bit.

    Args:
        source: Clip that was edited.
        result: Clip of the same shape.
        mask: Where the result is seen.
        feather: Width of the seam in pixels, inside the mask, over which source turns to result; 0 is a hard edge.
    """
    if not feather:
        return Clip(np.where(mask[..., None], result.frames, source.frames), result.fps)
    frames = []
    for before, after, edited in zip(source.frames, result.frames, mask, strict=True):
        distance = cv2.distanceTransform(edited.astype(np.uint8), cv2.DIST_L2, 5)
        # Without a border there is nothing to blend with, and the distance has no meaning.
        share = np.ones_like(distance) if edited.all() else np.clip(distance / (feather + 1), 0.0, 1.0)
        mixed = before + share[..., None] * (after.astype(np.float32) - before)
        frames.append(np.where(edited[..., None], np.rint(mixed), before).astype(np.uint8))
    return Clip(np.stack(frames), result.fps)
