"""When slices of semantic features and latent frames happen, in seconds, and where they are among each other.

Times count from the beginning of the video. Frame i is shown from i / fps to (i + 1) / fps and stands at the middle.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from sememe.errors import InputError

Times = Float[np.ndarray, " moment"]

# In frames or slices, so that sums of binary fractions fall on the side that decimal ones would.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class SliceClock:
    """How a semantic encoder divides time.

    Slice i covers the seconds from i * `slice_seconds` on. It is made of `frames_per_slice` frames, each shown at the
    middle of an equal part of it, so that slices and what they show have the same centre.

    Attributes:
        fps: Frames per second that the encoder is given. The paper's is 1.6 (arXiv 2512.20619, section 4.1).
        frames_per_slice: Frames that the encoder joins to one slice.

    Raises:
        InputError: A number is out of range.
    """

    fps: float
    frames_per_slice: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.fps < math.inf or self.frames_per_slice < 1:
            raise InputError(
                f"expected fps above 0 and frames_per_slice of at least 1, got {self.fps} and {self.frames_per_slice}"
            )

    @property
    def slice_seconds(self) -> float:
        return self.frames_per_slice / self.fps

    def count_slices(self, seconds: float) -> int:
        """Return the number of slices of a video: the nearest, and at least one.

        So less than half a slice at the end is left out, and a video that is shorter than one slice has one.

        Raises:
            InputError: `seconds` is not above 0.
        """
        if not 0 < seconds < math.inf:
            raise InputError(f"expected a video of more than 0 seconds, got {seconds}")
        return max(1, math.floor(seconds / self.slice_seconds + 0.5 + _ROUNDING))

    def times(self, num_slices: int) -> Times:
        """Return the centres of slices in seconds."""
        return (np.arange(num_slices) + 0.5) * self.slice_seconds

    def inner_edges(self, num_slices: int) -> tuple[float, ...]:
        """Return the seconds at which one slice ends and the next begins."""
        return tuple(self.slice_seconds * place for place in range(1, num_slices))

    def pick_frames(self, num_frames: int, fps: float) -> Int[np.ndarray, " picked"]:
        """Return the indices of the frames to encode, `frames_per_slice` for each slice.

        Where the last slice reaches beyond the end of the video, the last frame is repeated.

        Args:
            num_frames: Frames of the video, at least 1.
            fps: Frames per second of the video.
        """
        num_picks = self.count_slices(num_frames / fps) * self.frames_per_slice
        moments = (np.arange(num_picks) + 0.5) / self.fps
        return np.minimum(np.floor(moments * fps + _ROUNDING).astype(np.int64), num_frames - 1)


@dataclass(frozen=True)
class LatentClock:
    """How a causal video autoencoder divides time: the first frame alone, then blocks of equal length.

    Attributes:
        temporal_ratio: Frames per latent frame after the first; 1 divides time evenly.
        fps: Frames per second of the video.

    Raises:
        InputError: A number is out of range.
    """

    temporal_ratio: int
    fps: float

    def __post_init__(self) -> None:
        if not 0 < self.fps < math.inf or self.temporal_ratio < 1:
            raise InputError(
                f"expected fps above 0 and temporal_ratio of at least 1, got {self.fps} and {self.temporal_ratio}"
            )

    @classmethod
    def of_slices(cls, clock: SliceClock) -> "LatentClock":
        """Return the clock by which slices themselves are the latent frames, as they are for a planner."""
        return cls(temporal_ratio=1, fps=1.0 / clock.slice_seconds)

    def times(self, num_latent_frames: int) -> Times:
        """Return the centres of latent frames in seconds."""
        ratio = self.temporal_ratio
        frames = np.arange(num_latent_frames) * ratio - (ratio - 1) / 2
        return (np.maximum(frames, 0.0) + 0.5) / self.fps

    def end(self, num_latent_frames: int) -> float:
        """Return the seconds at which the last latent frame ends."""
        return ((num_latent_frames - 1) * self.temporal_ratio + 1) / self.fps

    def frames_at(self, times: Times) -> Int[np.ndarray, " moment"]:
        """Return the latent frames that show moments at or after 0 seconds."""
        frames = times * self.fps - 1.0
        return np.floor((frames + _ROUNDING) / self.temporal_ratio).astype(np.int64) + 1

    def positions(self, times: Times) -> Times:
        """Return moments as positions among latent frames, linear between their centres; inverts `times`."""
        frames, ratio = times * self.fps - 0.5, self.temporal_ratio
        first = (ratio + 1) / 2  # the distance of the centres of the first and the second latent frame
        return np.where(frames <= first, frames / first, (frames + (ratio - 1) / 2) / ratio)
