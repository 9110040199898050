"""A video autoencoder with a linear code, whose decoder is refined by a small network."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, IdentityDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Video = Float[Tensor, "batch 3 frame height width"]
Latents = Float[Tensor, "batch channel latent_frame latent_height latent_width"]
NoiseLevels = Float[Tensor, "batch latent_frame"]

_NUM_GROUPS = 8


class LinearVideoAutoencoder(ModelMixin, AutoencoderMixin, ConfigMixin):
    """Encode each block of frames and pixels by a linear map, with the methods of diffusers' autoencoders.

    A latent stands for `temporal_patch_size` frames of `patch_size` x `patch_size` pixels; the first frame fills a
    block of its own. With one frame to a block it is an autoencoder for images: each frame is encoded alone.
    Decoding inverts the map and adds a correction by a small convolutional network, which removes seams between blocks
    and errors of generated latents. The latents need no statistics: their mean variance is 1.

    Args:
        latent_channels: Numbers per block.
        patch_size: Pixels in height and width per block; even.
        hidden_channels: Channels of the refining network, a multiple of 8.
        num_layers: Number of residual blocks of the refining network.
        noise_level: The standard deviation of the error that decoding assumes latents to have. The first latent frame
            of a video is assumed exact: generations are given their first frame.
        temporal_patch_size: Frames per block; None for `patch_size`, 1 for images.
    """

    _supports_gradient_checkpointing = False
    # Latents must not depend on the precision of the files; both maps together are half a megabyte.
    _keep_in_fp32_modules = ("encoder", "decoder")

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 48,
        patch_size: int = 8,
        hidden_channels: int = 64,
        num_layers: int = 2,
        noise_level: float = 0.0,
        temporal_patch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.use_slicing = False
        self.num_frames = temporal_patch_size or patch_size
        self.encoder = nn.Linear(3 * self.num_frames * patch_size**2, latent_channels)
        self.decoder = nn.Linear(latent_channels, 3 * self.num_frames * patch_size**2)
        self.refiner = _Refiner(latent_channels, self.num_frames, patch_size // 2, hidden_channels, num_layers)

    @property
    def is_for_images(self) -> bool:
        """Whether each frame is encoded alone."""
        return self.num_frames == 1

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(self, x: Video) -> AutoencoderKLOutput:
        """Encode a video of 1 more than a multiple of the frames per block; its posterior has no variance."""
        padded = torch.cat([x[:, :, :1].expand(-1, -1, self.num_frames - 1, -1, -1), x], dim=2)
        blocks = fold(padded, self.num_frames, self.config.patch_size).movedim(1, -1)
        latents = self.encoder(blocks.to(self.encoder.weight.dtype)).movedim(-1, 1).to(x.dtype)
        return AutoencoderKLOutput(latent_dist=IdentityDistribution(latents))

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(self, z: Latents, noise_levels: NoiseLevels | None = None) -> DecoderOutput:
        """Decode latents to a video.

        Args:
            z: Latents.
            noise_levels: Standard deviation of the error of each latent frame; None for those of the configuration.
        """
        if noise_levels is None:
            noise_levels = z.new_full((len(z), z.shape[2]), self.config.noise_level)
            if not self.is_for_images:
                noise_levels[:, 0] = 0.0
        parts = zip(z.split(1), noise_levels.split(1), strict=True) if self.use_slicing else [(z, noise_levels)]
        return DecoderOutput(sample=torch.cat([self._decode(*part) for part in parts]))

    def decode_linear(self, z: Latents) -> Video:
        """Decode by the linear map alone; the first frame is repeated to fill its block."""
        blocks = self.decoder(z.movedim(1, -1).to(self.decoder.weight.dtype))
        return unfold(blocks.movedim(-1, 1).to(z.dtype), self.num_frames, self.config.patch_size)

    def _decode(self, z: Latents, noise_levels: NoiseLevels) -> Video:
        video = self.decode_linear(z)
        return (video + self.refiner(video, z, noise_levels))[:, :, self.num_frames - 1 :]

    def forward(self, sample: Video) -> DecoderOutput:
        """Encode and decode."""
        return self.decode(self.encode(sample).latent_dist.mode())


class _Refiner(nn.Module):
    """Corrects linearly decoded pixels, latent frame by latent frame, from those of its neighbours in space and time.

    It sees every latent frame folded into channels at half the pixels of a block, with the last frame before it, the
    first one after it, the first of the video, where still things are sharpest, and the latents of all three. Of
    images, which are one frame each, it sees that frame alone.
    """

    def __init__(
        self, latent_channels: int, num_frames: int, num_pixels: int, hidden_channels: int, num_layers: int
    ) -> None:
        super().__init__()
        self.num_frames, self.num_pixels = num_frames, num_pixels
        picture = 3 * num_pixels**2
        num_seen = num_frames * picture + latent_channels + 1
        num_neighbours = 0 if num_frames == 1 else 3 * picture + 2 * latent_channels
        self.conv_in = _convolution(num_seen + num_neighbours, hidden_channels)
        self.blocks = nn.ModuleList([_ResidualBlock(hidden_channels) for _ in range(num_layers)])
        self.norm_out = nn.GroupNorm(_NUM_GROUPS, hidden_channels)
        self.conv_out = _convolution(hidden_channels, num_frames * picture)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, video: Video, latents: Latents, noise_levels: NoiseLevels) -> Video:
        """Return the correction, of the shape of `video`, which holds whole blocks of frames."""
        hidden = self._see(video, latents, noise_levels).contiguous(memory_format=torch.channels_last)
        hidden = self.conv_in(hidden.to(self.conv_in.weight.dtype))
        for block in self.blocks:
            hidden = block(hidden)
        hidden = self.conv_out(functional.silu(self.norm_out(hidden)))
        return unfold(hidden.unflatten(0, (len(video), -1)).movedim(1, 2), self.num_frames, self.num_pixels).to(video)

    def _see(self, video: Video, latents: Latents, noise_levels: NoiseLevels) -> Tensor:
        """Return the network's input (batch * latent frame, channel, height, width), of twice the latents' size."""
        wide = latents.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
        plane = noise_levels.to(wide)[:, None, :, None, None].expand(-1, -1, -1, *wide.shape[3:])
        own = fold(video, self.num_frames, self.num_pixels)
        parts: tuple[Tensor, ...] = (own, wide, plane)
        if self.num_frames > 1:
            before, after = _list_neighbours(wide)
            parts = (own, *self._see_neighbours(video), wide, wide[:, :, before], wide[:, :, after], plane)
        # (batch, channel, latent frame, height, width) each, joined with latent frames in the batch
        return torch.cat([part.movedim(2, 1).flatten(0, 1) for part in parts], dim=1)

    def _see_neighbours(self, video: Video) -> tuple[Tensor, Tensor, Tensor]:
        """The last frame before each latent frame, the first one after it, and the first of the video."""
        first = fold(video[:, :, :: self.num_frames], 1, self.num_pixels)
        last = fold(video[:, :, self.num_frames - 1 :: self.num_frames], 1, self.num_pixels)
        before, after = _list_neighbours(last)
        return last[:, :, before], first[:, :, after], last[:, :, :1].expand_as(last)


def _list_neighbours(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places before and after each latent frame; both ends are their own neighbours."""
    places = torch.arange(frames.shape[2], device=frames.device)
    return (places - 1).clamp_min(0), (places + 1).clamp_max(len(places) - 1)


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(_NUM_GROUPS, channels), nn.GroupNorm(_NUM_GROUPS, channels)
        self.conv1, self.conv2 = _convolution(channels, channels), _convolution(channels, channels)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.conv1(functional.silu(self.norm1(hidden)))
        return hidden + self.conv2(functional.silu(self.norm2(inner)))


def _convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


def fold(
    video: Float[Tensor, "batch channel frame height width"], num_frames: int, num_pixels: int
) -> Float[Tensor, "batch block_channel block_frame row column"]:
    """Fold blocks of `num_frames` frames of `num_pixels` x `num_pixels` pixels into channels."""
    video = video.unflatten(4, (-1, num_pixels)).unflatten(3, (-1, num_pixels)).unflatten(2, (-1, num_frames))
    # (batch, channel, F, frame, H, height, W, width) -> (batch, channel * frame * height * width, F, H, W)
    return video.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def unfold(
    folded: Float[Tensor, "batch block_channel block_frame row column"], num_frames: int, num_pixels: int
) -> Float[Tensor, "batch channel frame height width"]:
    """Invert `fold`."""
    blocks = folded.unflatten(1, (-1, num_frames, num_pixels, num_pixels))
    # (batch, channel, frame, height, width, F, H, W) -> (batch, channel, F * frame, H * height, W * width)
    return blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
