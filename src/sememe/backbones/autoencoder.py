"""Videos and clips to latents and back: the one place where latents are normalised.

What `encode_video` returns has about zero mean and unit variance per channel, and networks, schedulers and caches see
no other latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLCogVideoX, AutoencoderKLWan, ModelMixin
from diffusers.utils.torch_utils import get_module_execution_device
from jaxtyping import Float, UInt8

from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder
from sememe.errors import InputError, ModelError
from sememe.video import Clip

Video = Float[torch.Tensor, "batch 3 frame height width"]
Latents = Float[torch.Tensor, "batch channel latent_frame latent_height latent_width"]
Statistic = Float[torch.Tensor, ""] | Float[torch.Tensor, "1 channel 1 1 1"]
Generators = torch.Generator | list[torch.Generator] | None


Autoencoder: TypeAlias = AutoencoderKLWan | AutoencoderKLCogVideoX | AutoencoderKL | LinearVideoAutoencoder
"""Videos to latents and back: those that `latent_grid` knows."""


@dataclass(frozen=True)
class LatentGrid:
    """What a causal video autoencoder makes of a video's shape.

    Attributes:
        temporal_ratio: Frames per latent frame; the first frame has a latent frame of its own.
        spatial_ratio: Pixels per latent pixel, in height and in width.
        num_channels: Channels of a latent.
        patch_size: Latent pixels per token of the transformer behind it, in height and in width.
        frame_multiple: The number of frames of a decoded video is 1 more than a multiple of this; 0 stands for the
            temporal ratio.
    """

    temporal_ratio: int
    spatial_ratio: int
    num_channels: int
    patch_size: int = 1
    frame_multiple: int = 0

    def __post_init__(self) -> None:
        if not self.frame_multiple:
            object.__setattr__(self, "frame_multiple", self.temporal_ratio)

    @property
    def size_multiple(self) -> int:
        """Height and width in pixels must be multiples of this."""
        return self.spatial_ratio * self.patch_size

    def count_latent_frames(self, num_frames: int) -> int:
        """Return the latent frames of a video of so many frames."""
        return (num_frames - 1) // self.temporal_ratio + 1

    def count_frames(self, num_latent_frames: int) -> int:
        """Return the frames of a video of so many latent frames."""
        return (num_latent_frames - 1) * self.temporal_ratio + 1

    def nearest_num_frames(self, num_frames: int) -> int:
        """Return the nearest number of frames that the autoencoder can make, at least 1; of two the larger."""
        steps = (max(num_frames, 1) - 1 + self.frame_multiple // 2) // self.frame_multiple
        return steps * self.frame_multiple + 1

    def nearest_size(self, pixels: int) -> int:
        """Return the nearest height or width in pixels that fits, at least one multiple."""
        return max(1, (pixels + self.size_multiple // 2) // self.size_multiple) * self.size_multiple

    def latent_shape(
        self, num_frames: int, height: int, width: int, *, is_decoded: bool = True, what: str = "num_frames"
    ) -> tuple[int, int, int, int]:
        """Return (channel, frame, height, width) of the latents of a video.

        Args:
            num_frames: Frames of the video.
            height: Pixels.
            width: Pixels.
            is_decoded: Whether the latents must also give that video back.
            what: The name of the number of frames in a message.

        Raises:
            InputError: No latents have that shape; the message names the nearest that do.
        """
        is_encoded = num_frames >= 1 and num_frames % self.temporal_ratio == 1 % self.temporal_ratio
        if self.nearest_num_frames(num_frames) != num_frames and (is_decoded or not is_encoded):
            raise InputError(
                f"{what} must be 1 more than a multiple of {self.frame_multiple} for this model, got {num_frames}; "
                f"the nearest is {self.nearest_num_frames(num_frames)}"
            )
        for name, pixels in (("height", height), ("width", width)):
            if self.nearest_size(pixels) != pixels:
                raise InputError(
                    f"{name} must be a multiple of {self.size_multiple} for this model, got {pixels}; "
                    f"the nearest is {self.nearest_size(pixels)}"
                )
        frames = self.count_latent_frames(num_frames)
        return self.num_channels, frames, height // self.spatial_ratio, width // self.spatial_ratio


def latent_grid(vae: ModelMixin, patch_size: int = 1) -> LatentGrid:
    """Return the grid of a video autoencoder (ours, Wan's, CogVideoX's), or of Stable Diffusion's, which is for images.

    Raises:
        ModelError: The autoencoder is of any other class.
    """
    config = vae.config
    name = type(vae).__name__
    if name == "AutoencoderKLWan":
        return LatentGrid(config.scale_factor_temporal, config.scale_factor_spatial, config.z_dim, patch_size)
    if _is_for_images(vae):
        return LatentGrid(1, 2 ** (len(config.block_out_channels) - 1), config.latent_channels, patch_size)
    if name == "LinearVideoAutoencoder":
        return LatentGrid(
            config.temporal_patch_size or config.patch_size, config.patch_size, config.latent_channels, patch_size
        )
    if name == "AutoencoderKLCogVideoX":
        ratio, spatial = int(config.temporal_compression_ratio), 2 ** (len(config.block_out_channels) - 1)
        # It decodes latent frames in pairs, and three at once where a first one is left over: an even number of latent
        # frames gives more frames than went in.
        return LatentGrid(ratio, spatial, config.latent_channels, patch_size, frame_multiple=2 * ratio)
    raise ModelError(
        "expected AutoencoderKLWan, AutoencoderKLCogVideoX, AutoencoderKL or LinearVideoAutoencoder as the "
        f"autoencoder, got {name}"
    )


def encode_video(vae: Autoencoder, video: Video, generator: Generators = None) -> Latents:
    """Encode to normalised latents; deterministic (the mode of the posterior) unless a generator is given.

    An autoencoder for images encodes frame by frame, in the memory of one frame.

    Args:
        vae: A diffusers video autoencoder.
        video: Values in [-1, 1]; the number of frames is 1 more than a multiple of the temporal ratio.
        generator: Source of draws from the posterior, one or one per video; None for its mode.

    Returns:
        Latents in float32.
    """
    video = video.to(get_module_execution_device(vae), vae.dtype)
    if generator is None:
        latents = _encode(vae, video)
    else:
        # One by one, as the official pipeline draws them.
        generators = generator if isinstance(generator, list) else [generator] * len(video)
        drawn = zip(video.split(1), generators, strict=True)
        latents = torch.cat([_encode(vae, one, source) for one, source in drawn])
    latents = latents.float()
    mean, std = latent_statistics(vae, latents)
    return (latents - mean) / std


def decode_latents(vae: Autoencoder, latents: Latents) -> Video:
    """Decode normalised latents to a video in [-1, 1], in the autoencoder's precision.

    Raises:
        InputError: The video is not a number somewhere.
    """
    latents = latents.to(get_module_execution_device(vae), torch.float32)
    mean, std = latent_statistics(vae, latents)
    return finish_video(_decode(vae, (latents * std + mean).to(vae.dtype)))


@torch.no_grad()
def reconstruct_clips(vae: Autoencoder, clips: Sequence[Clip]) -> list[Clip]:
    """Encode clips of one shape and decode them again, which is the best that any model of their latents can show."""
    return video_to_clips(decode_latents(vae, encode_video(vae, clips_to_video(clips))), clips[0].fps)


def finish_video(decoded: Video) -> Video:
    """Return what an autoencoder decoded, within [-1, 1].

    Raises:
        InputError: The video is not a number somewhere.
    """
    video = decoded.clamp(-1.0, 1.0)
    if video.isnan().any():
        raise InputError(
            "the decoded video is not finite: an overflow, as float16 has them (use bfloat16 or float32), or a damaged "
            "autoencoder"
        )
    return video


def _is_for_images(vae: ModelMixin) -> bool:
    return type(vae).__name__ == "AutoencoderKL"


def _encode(vae: Autoencoder, video: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    if _is_for_images(vae):
        posteriors = [vae.encode(frame).latent_dist for frame in video.unbind(2)]
        return torch.stack([_pick(each, generator) for each in posteriors], dim=2)
    return _pick(vae.encode(video).latent_dist, generator)


def _pick(posterior: Any, generator: torch.Generator | None) -> torch.Tensor:
    return posterior.mode() if generator is None else posterior.sample(generator)


def _decode(vae: Autoencoder, latents: torch.Tensor) -> torch.Tensor:
    if _is_for_images(vae):
        return torch.stack([vae.decode(frame).sample for frame in latents.unbind(2)], dim=2)
    if getattr(vae, "is_for_images", False):
        return torch.cat([vae.decode(frame).sample for frame in latents.split(1, dim=2)], dim=2)
    return vae.decode(latents).sample


def latent_statistics(vae: Autoencoder, latents: Latents) -> tuple[Statistic, Statistic]:
    """Return mean and deviation of raw latents."""
    config = vae.config
    means, deviations = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if means is None or deviations is None:
        scale = getattr(config, "scaling_factor", None) or 1.0
        return latents.new_zeros(()), latents.new_full((), 1.0 / scale)
    mean, std = (latents.new_tensor(values).view(1, -1, 1, 1, 1) for values in (means, deviations))
    return mean, std


def format_video(video: Video, clips: Sequence[Clip], output_type: str) -> Any:
    """Return decoded videos in the form that a pipeline was asked for.

    Args:
        video: Values in [-1, 1].
        clips: The same as clips.
        output_type: "np", float (batch, frame, height, width, 3) in [0, 1]; "pt", float (batch, frame, 3, height,
            width) in [0, 1]; or "pil", a list of PIL images per clip.
    """
    if output_type == "pil":
        from PIL import Image

        return [[Image.fromarray(frame) for frame in clip.frames] for clip in clips]
    scaled = video.float().permute(0, 2, 1, 3, 4).add(1.0).div(2.0)
    return scaled if output_type == "pt" else scaled.permute(0, 1, 3, 4, 2).cpu().numpy()


def clips_to_video(clips: Sequence[Clip]) -> Video:
    """Stack clips of one shape to (batch, 3, frame, height, width), values in [-1, 1], float32."""
    # Channels last in memory, as frames are, unlike `frames_to_video`: the rounding of convolutions depends on it.
    frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
    return frames.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0)


def frames_to_video(frames: UInt8[np.ndarray, "batch frame height width 3"]) -> Video:
    """Bring frames to (batch, 3, frame, height, width), values in [-1, 1], float32."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -4))).float().div_(127.5).sub_(1.0)


def video_to_clips(video: Video, fps: float) -> list[Clip]:
    """Make one clip per entry of the batch; values beyond [-1, 1] are cut off."""
    levels = video.float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    frames = levels.to(torch.uint8).permute(0, 2, 3, 4, 1).cpu().numpy()
    return [Clip(np.ascontiguousarray(entry), fps) for entry in frames]
