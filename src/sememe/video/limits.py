"""How much of a file may be decoded."""

import math
from dataclasses import dataclass, fields

from sememe.errors import InputError


@dataclass(frozen=True)
class VideoLimits:
    """Bounds that a video or picture is held to, checked before a frame is made and again while decoding.

    The defaults let a minute of 4K at 60 frames a second pass and refuse small files that unfold to hundreds of
    gigabytes.

    Attributes:
        max_pixels: pixels of one frame of a video.
        max_frames: frames in the file, whether they are kept or not.
        max_duration: seconds.
        max_total_pixels: pixels of all frames in the file together.
        max_kept_bytes: bytes of the RGB frames that are kept, after sampling and resizing.
        max_image_pixels: pixels of a picture.
        min_image_side: pixels; a picture with a shorter side is refused.

    Raises:
        InputError: a limit is not a positive number.
    """

    max_pixels: int = 4096 * 2304
    max_frames: int = 36_000
    max_duration: float = 600.0
    max_total_pixels: int = 40_000_000_000
    max_kept_bytes: int = 2 * 1024**3
    max_image_pixels: int = 52_000_000  # a photograph of 50 megapixels passes; with 16-bit RGBA it takes 1.6 GB
    min_image_side: int = 8

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"expected {field.name} above 0, got {value}")
