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
        class_name: of diffusers.
        grid: what it makes of a video's shape.
        total: numbers in its weights.
        width: channels of the decoder at the highest resolution.
        patch: pixels that it folds into channels before anything else, in height and width, and in frames for Cosmos.
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
            peak = self._encode_whole(channels, num_frames, height, width)
        else:
            peak = self._peak(1, channels, num_frames, height, width, tiled=tiled)
        return peak + _video_bytes(num_frames, height, width)

    def _peak(self, place: int, channels: int, num_frames: int, height: int, width: int, *, tiled: bool) -> int:
        if tiled:
            height, width = min(height, _TILE), min(width, _TILE)
        frames = min(_CHUNK_FRAMES[self.class_name], num_frames)
        unit = frames * (height // self.patch) * (width // self.patch) * channels * _FLOAT32
        return int(_PEAKS[self.class_name][place] * unit)

    # Cosmos works on all frames at once. Its peak is either that of a residual block, which holds six tensors, two of
    # them padded in front by two frames, or that of the wavelets that fold a video into its channels and back.

    def _decode_whole(self, num_frames: int, height: int, width: int) -> int:
        frames, place, folded = self._fold(num_frames, height, width)
        # Unfolding holds six copies of the video, and its input where it unfolds more than once. For few frames the
        # last convolution, padded in front, takes more.
        copies = 6 if self.patch <= 2 else 7
        unfolding = folded * max(copies * frames, 3 * frames + 6)
        return max(6 * (frames + 1) * self.width, unfolding) * place

    def _encode_whole(self, channels: int, num_frames: int, height: int, width: int) -> int:
        frames, place, folded = self._fold(num_frames, height, width)
        return int(max(6 * (frames + 1) * channels, 6.5 * frames * folded) * place)

    def _fold(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Folded frames, bytes of one number in each place of such a frame, and channels of a folded video."""
        frames = (num_frames - 1) // self.patch + 1
        return frames, (height // self.patch) * (width // self.patch) * _FLOAT32, 3 * self.patch**3


def _video_bytes(num_frames: int, height: int, width: int) -> int:
    return 3 * num_frames * height * width * _FLOAT32


def _covered(pixels: int) -> int:
    """Pixels of all tiles along a side, where those that overlap count twice."""
    return sum(min(_TILE, pixels - start) for start in range(0, pixels, _TILE_STRIDE))
