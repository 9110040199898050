"""From pictures and sources to inputs of the networks: first-frame channels, and frames that are known."""

from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin
from jaxtyping import Bool
from torch import Tensor

from sememe.backbones.autoencoder import Autoencoder, clips_to_video, latent_grid
from sememe.backbones.first_frame import ConditionChannels, FirstFrameFill, frame_condition
from sememe.diffusion.objectives import FLOW
from sememe.semanticgen.shapes import VideoLatents, VideoPart
from sememe.semanticgen.windows import WindowLayout
from sememe.video import Clip, Image, resize_image

_LONGEST_CONDITION = 121
"""Frames after which the latents of a still video no longer change: Wan's encoder sees 112 frames back, ours 8."""


def make_condition(
    vae: Autoencoder, images: list[Image], num_frames: int, size: tuple[int, int], fill: FirstFrameFill
) -> ConditionChannels:
    """Return mask and latents of first pictures for all latent frames of a video.

    What follows the picture is still, so that in a long video the last latent frame is repeated: no more than
    121 frames are encoded.

    Args:
        vae: Autoencoder.
        images: A picture of any size for each video; it is resized to cover the frame, and cropped.
        num_frames: Frames of the video.
        size: Height and width of the video.
        fill: Frames that follow the picture.
    """
    clips = [Clip.from_image(resize_image(image, *size)) for image in images]
    pictures = clips_to_video(clips)[:, :, 0]
    condition = frame_condition(vae, pictures, min(num_frames, _LONGEST_CONDITION), fill)
    missing = latent_grid(vae).count_latent_frames(num_frames) - condition.shape[2]
    return torch.cat([condition, condition[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)


@dataclass(frozen=True, eq=False)
class Known:
    """Frames of a result that are known before it is made, and that the others have to continue.

    At each step they have their own noise at the level of the step (arXiv 2204.03458, section 3.1, the replacement
    method), so that networks need not be trained for it.

    Attributes:
        clean: All frames; of those that are not known any values.
        is_known: Whether each is known.
    """

    clean: VideoPart
    is_known: Bool[Tensor, " frame"]

    def hold(self, latents: VideoPart, noise: VideoPart, scheduler: SchedulerMixin, step: int) -> VideoPart:
        """Return latents after a step, with those that are known at the noise level of the next one."""
        sigma = scheduler.sigmas[step + 1].to(latents).expand(len(latents))
        known = FLOW.add_noise(self.clean.to(latents), noise, sigma)
        return torch.where(self.is_known.to(latents.device).view(1, 1, -1, 1, 1), known, latents)


@dataclass(frozen=True, eq=False)
class Retake:
    """A span of a video that is rendered again, between latents that are kept.

    The renderer sees the windows of the span and one window on each side, whose latents are those of the kept video at
    the noise level of each step. What is farther away neither is seen nor costs anything.

    Attributes:
        clean: Latents of the kept video.
        span: First latent frame of the span, and the one after the last.
        half_windows: First and last half window that is computed.
        seen: First latent frame that is computed, and the one after the last.
    """

    clean: VideoLatents
    span: tuple[int, int]
    half_windows: tuple[int, int]
    seen: tuple[int, int]

    @classmethod
    def of(cls, clean: VideoLatents, layout: WindowLayout, span: tuple[int, int]) -> "Retake":
        """Plan the retake of a span of latent frames; the layout is that of the whole video without a plan."""
        touched = [
            piece.half_window for piece in layout.pieces if piece.latents[0] < span[1] and piece.latents[1] > span[0]
        ]
        half_windows = (touched[0] - 2, touched[-1] + 2)
        return cls(clean, span, half_windows, layout.join(*half_windows).latents)

    def cut(self, latents: VideoLatents) -> VideoPart:
        """Return what is computed of latents of the whole video."""
        return latents[:, :, slice(*self.seen)]

    @property
    def kept(self) -> Known:
        """What is computed of the kept video."""
        places = torch.arange(*self.seen)
        return Known(self.cut(self.clean), (places < self.span[0]) | (places >= self.span[1]))

    def put_back(self, latents: VideoPart) -> VideoLatents:
        """Return the latents of the whole video, those of the span new."""
        start, stop = (place - self.seen[0] for place in self.span)
        new = latents[:, :, start:stop].to(self.clean)
        return torch.cat([self.clean[:, :, : self.span[0]], new, self.clean[:, :, self.span[1] :]], dim=2)
