"""The conditioning of image-to-video backbones by a picture.

Wan reads a mask that says which frames are given, and the latents of a video that holds those frames; CogVideoX reads
the latents of the first frame alone.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float

from sememe.backbones.autoencoder import Autoencoder, Generators, Latents, encode_video, latent_grid
from sememe.errors import InputError, ModelError

Images = Float[torch.Tensor, "batch 3 height width"]
FirstFrameFill = Literal["grey", "repeat"]
CachedFill = Literal["grey", "repeat", "zeros"]
"""What follows a first frame's own latents in a cache: as in `FirstFrameFill`, or zeros, as CogVideoX has it."""
ConditionChannels = Float[torch.Tensor, "batch mask_and_channel latent_frame latent_height latent_width"]


def encode_first_frame(
    vae: Autoencoder,
    images: Images,
    num_frames: int,
    fill: FirstFrameFill = "grey",
    last_images: Images | None = None,
) -> Latents:
    """Encode a video that holds the picture and then mid-grey, as Wan does, or the picture in every frame.

    With "repeat" every latent frame has the picture, so that a small network need not learn to carry it over.

    Args:
        vae: A diffusers video autoencoder.
        images: Pictures, values in [-1, 1].
        num_frames: Frames of the video to be made, the picture included.
        fill: What the later frames hold, as it was when the transformer was trained.
        last_images: Pictures for the last frame, of the same shape.

    Raises:
        InputError: A last frame is given, and the video has one frame only.
    """
    later = images.unsqueeze(2).expand(-1, -1, num_frames - 1, -1, -1)
    if fill == "grey":
        later = torch.zeros_like(later)
    if last_images is not None:
        if num_frames < 2:
            raise InputError(f"a last frame needs num_frames of at least 2, got {num_frames}")
        later = torch.cat([later[:, :, 1:], last_images.unsqueeze(2)], dim=2)
    return encode_video(vae, torch.cat([images.unsqueeze(2), later], dim=2))


def encode_cached_first_frame(vae: Autoencoder, images: Images, num_frames: int, fill: CachedFill) -> Latents:
    """Encode what is cached of first frames for training: of the shape of the clip's latents, and without a mask."""
    if fill == "zeros":
        return leading_frame_condition(vae, images, num_frames)
    return encode_first_frame(vae, images, num_frames, fill)


def check_fill(fill: str) -> None:
    """Raise `ModelError` for a fill that is not one of `FirstFrameFill`."""
    if fill not in get_args(FirstFrameFill):
        raise ModelError(f"first_frame_fill must be one of {', '.join(get_args(FirstFrameFill))}, got {fill!r}")


def mark_first_frame(
    first_frame_latents: Latents, num_mask_channels: int, *, has_last_frame: bool = False
) -> ConditionChannels:
    """Put the mask in front of encoded frames: 1 where a frame is given, 0 elsewhere.

    The transformer's input is (noisy latents, mask, encoded frames) along the channels; this makes the last two. The
    first latent frame stands for one frame and is marked in all mask channels; the last frame is the last of its latent
    frame.

    Args:
        first_frame_latents: Latents that `encode_first_frame` made.
        num_mask_channels: One per frame in a latent frame, that is the autoencoder's temporal ratio.
        has_last_frame: Whether the last frame is given too.
    """
    batch, _, *grid = first_frame_latents.shape
    mask = first_frame_latents.new_zeros(batch, num_mask_channels, *grid)
    mask[:, :, 0] = 1.0
    if has_last_frame:
        mask[:, -1, -1] = 1.0
    return torch.cat([mask, first_frame_latents], dim=1)


def frame_condition(
    vae: Autoencoder,
    images: Images,
    num_frames: int,
    fill: FirstFrameFill = "grey",
    last_images: Images | None = None,
) -> ConditionChannels:
    """Encode pictures in [-1, 1], and put the mask in front; arguments are those of `encode_first_frame`."""
    latents = encode_first_frame(vae, images, num_frames, fill, last_images)
    return mark_first_frame(latents, latent_grid(vae).temporal_ratio, has_last_frame=last_images is not None)


def leading_frame_condition(vae: Autoencoder, images: Images, num_frames: int, generator: Generators = None) -> Latents:
    """Encode a picture as CogVideoX reads it: its own latents in the first latent frame, zeros in the later ones.

    Models of CogVideoX 1.5 take these latents without the scale of all others (`invert_scale_latents`).

    Args:
        vae: `AutoencoderKLCogVideoX`.
        images: Pictures, values in [-1, 1].
        num_frames: Frames of the video to be made.
        generator: Source of draws from the posterior; None for its mode.
    """
    latents = encode_video(vae, images.unsqueeze(2), generator)
    if getattr(vae.config, "invert_scale_latents", False):
        latents = latents / vae.config.scaling_factor
    num_later = latent_grid(vae).count_latent_frames(num_frames) - 1
    return torch.nn.functional.pad(latents, (0, 0, 0, 0, 0, num_later))
