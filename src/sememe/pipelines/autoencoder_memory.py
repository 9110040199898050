"""How much memory a video autoencoder takes to encode and to decode, by arithmetic on its configuration."""

from collections.abc import Mapping
from dataclasses import dataclass

from sememe.backbones.autoencoder import LatentGrid

# Tensors of full resolution alive at the peak: numbers of (chunk frames, height, width, first width). Wan keeps two
# frames of every convolution's input beside a residual block's work; CogVideoX normalises in copies and interpolates
# its conditions to full size.
_PEAKS: Mapping[str, tuple[float, float]] = {
    "AutoencoderKLWan": (12.7, 9.2),
    "AutoencoderKLCogVideoX": (22.4, 9.4),
}
_CHUNK_FRAMES = {"AutoencoderKLWan": 4, "AutoencoderKLCogVideoX": 8}
_TILE, _TILE_STRIDE = 256, 192
_FLOAT32 = 4


@dataclass(frozen=True)
class AutoencoderShape:
    """A video autoencoder, which computes in float32.

    Attributes:
        class_name: of diffusers, or `LinearVideoAutoencoder`.
        grid: what it makes of a video's shape.
        total: numbers in its weights.
        width: channels of the decoder at the highest resolution.
        patch: pixels that it folds into channels before anything else, in height and width.
        encoder_width: channels of the encoder at the highest resolution; 0 for as many as the decoder has.
        largest_layer: numbers in its largest single layer.
    """

    class_name: str
    grid: LatentGrid
    total: int
    width: int
    patch: int = 1
    encoder_width: int = 0
    largest_layer: int = 0

    @property
    def is_parted_by_layer(self) -> bool:
        """Whether offload by blocks moves single layers of it, because its class does not say which blocks it has."""
        return self.class_name != "AutoencoderKLWan"

    @property
    def can_tile(self) -> bool:
        return self.class_name in _PEAKS

    @staticmethod
    def tiles_at(height: int, width: int) -> bool:
        """Whether a picture is larger than a tile."""
        return max(height, width) > _TILE

    def decode_bytes(self, num_frames: int, height: int, width: int, *, tiled: bool) -> int:
        """The peak of decoding one video, the result included."""
        if not self.can_tile:
            return self._decode_whole(num_frames, height, width)
        peak = self._peak(0, self.width, num_frames, height, width, tiled=tiled)
        # Tiles overlap, and are joined when all are there.
        covered = (_covered(height), _covered(width)) if tiled else (height, width)
        return peak + _video_bytes(num_frames, *covered)

    def encode_bytes(self, num_frames: int, height: int, width: int, *, tiled: bool) -> int:
        """The peak of encoding one video, which is itself on the device."""
        channels = self.encoder_width or self.width
        if not self.can_tile:
            peak = self._encode_whole(num_frames, height, width)
        else:
            peak = self._peak(1, channels, num_frames, height, width, tiled=tiled)
        return peak + _video_bytes(num_frames, height, width)

    def _peak(self, place: int, channels: int, num_frames: int, height: int, width: int, *, tiled: bool) -> int:
        if tiled:
            height, width = min(height, _TILE), min(width, _TILE)
        frames = min(_CHUNK_FRAMES[self.class_name], num_frames)
        unit = frames * (height // self.patch) * (width // self.patch) * channels * _FLOAT32
        return int(_PEAKS[self.class_name][place] * unit)

    # The linear autoencoder works on all frames at once. It decodes to as many as its latent frames hold, its input
    # being folded and joined with the neighbours', or its refinement keeps four tensors of its width.

    def _decode_whole(self, num_frames: int, height: int, width: int) -> int:
        size, pixels = self.grid.temporal_ratio, 3 * (self.grid.spatial_ratio // 2) ** 2
        joined = (size + 3) * pixels + 3 * self.grid.num_channels + 1
        tensors = max(2 * joined / (size * pixels) + 1 / size, 4 * self.width / (size * pixels))
        return int((1 + tensors) * self._padded_bytes(num_frames, height, width))

    def _encode_whole(self, num_frames: int, height: int, width: int) -> int:
        share = self.grid.num_channels / (3 * self.grid.temporal_ratio * self.grid.spatial_ratio**2)
        return int(2 * (1 + share) * self._padded_bytes(num_frames, height, width))

    def _padded_bytes(self, num_frames: int, height: int, width: int) -> int:
        return _video_bytes(self.grid.temporal_ratio * self.grid.count_latent_frames(num_frames), height, width)


def _video_bytes(num_frames: int, height: int, width: int) -> int:
    return 3 * num_frames * height * width * _FLOAT32


def _covered(pixels: int) -> int:
    """Pixels of all tiles along a side, where those that overlap count twice."""
    return sum(min(_TILE, pixels - start) for start in range(0, pixels, _TILE_STRIDE))
