"""The image-to-video condition of Wan: the first frame's latents, and a mask that says which frames are given."""

import torch
from jaxtyping import Float
from torch import nn

from sememe.models.autoencoder import Latents, encode_video, latent_grid

Images = Float[torch.Tensor, "batch 3 height width"]
ConditionChannels = Float[torch.Tensor, "batch mask_and_channel latent_frame latent_height latent_width"]


def encode_first_frame(vae: nn.Module, images: Images, num_frames: int) -> Latents:
    """Encodes a video that holds the picture and then mid-grey.

    Args:
        vae: a diffusers video autoencoder.
        images: values in [-1, 1].
        num_frames: frames of the video to be made, the picture included.
    """
    later = images.new_zeros(*images.shape[:2], num_frames - 1, *images.shape[2:])
    return encode_video(vae, torch.cat([images.unsqueeze(2), later], dim=2))


def mark_first_frame(first_frame_latents: Latents, num_mask_channels: int) -> ConditionChannels:
    """Puts the mask in front of encoded first frames: 1 in the first latent frame, 0 behind it.

    The transformer's input is (latents, mask, condition) along the channels; this makes the last two.

    Args:
        first_frame_latents: as made by `encode_first_frame`.
        num_mask_channels: one per frame in a latent frame, that is the autoencoder's temporal ratio.
    """
    batch, _, *grid = first_frame_latents.shape
    mask = first_frame_latents.new_zeros(batch, num_mask_channels, *grid)
    mask[:, :, 0] = 1.0
    return torch.cat([mask, first_frame_latents], dim=1)


def first_frame_condition(vae: nn.Module, images: Images, num_frames: int) -> ConditionChannels:
    """Mask and condition channels (batch, mask + channel, latent frame, height, width) for pictures in [-1, 1]."""
    return mark_first_frame(encode_first_frame(vae, images, num_frames), latent_grid(vae).temporal_ratio)
