"""The image-to-video condition of Wan: the first frame's latents, and a mask that says which frames are given."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import nn

from sememe.errors import ModelError
from sememe.models.autoencoder import Latents, encode_video, latent_grid

Images = Float[torch.Tensor, "batch 3 height width"]
FirstFrameFill = Literal["grey", "repeat"]
ConditionChannels = Float[torch.Tensor, "batch mask_and_channel latent_frame latent_height latent_width"]


def encode_first_frame(vae: nn.Module, images: Images, num_frames: int, fill: FirstFrameFill = "grey") -> Latents:
    """Encodes a video that holds the picture and then mid-grey, as Wan does, or the picture again and again.

    With "repeat" every latent frame tells what is where, so that a small network need not learn to carry it over.

    Args:
        vae: a diffusers video autoencoder.
        images: values in [-1, 1].
        num_frames: frames of the video to be made, the picture included.
        fill: what the later frames hold; what the transformer was trained with.
    """
    later = images.unsqueeze(2).expand(-1, -1, num_frames - 1, -1, -1)
    if fill == "grey":
        later = torch.zeros_like(later)
    return encode_video(vae, torch.cat([images.unsqueeze(2), later], dim=2))


def check_fill(fill: str) -> None:
    """Raises `ModelError` for a fill that there is not."""
    if fill not in get_args(FirstFrameFill):
        raise ModelError(f"first_frame_fill must be one of {', '.join(get_args(FirstFrameFill))}, got {fill!r}")


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


def first_frame_condition(
    vae: nn.Module, images: Images, num_frames: int, fill: FirstFrameFill = "grey"
) -> ConditionChannels:
    """Mask and condition channels (batch, mask + channel, latent frame, height, width) for pictures in [-1, 1]."""
    return mark_first_frame(encode_first_frame(vae, images, num_frames, fill), latent_grid(vae).temporal_ratio)
