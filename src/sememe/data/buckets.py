"""Buckets: lengths and sizes of clips that are trained on together. Imports no numpy, so that recipes list at once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sememe.errors import RecipeError


@dataclass(frozen=True)
class Bucket:
    """Length and size of the clips of a batch, written as "17x64x96": frames, height and width in pixels.

    Raises:
        RecipeError: One of them is less than 1.
    """

    num_frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.num_frames, self.height, self.width) < 1:
            raise RecipeError(f"a bucket has at least 1 frame, and 1 pixel in height and width, got {self}")

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> "Bucket":
        """Parse a bucket such as "17x64x96". Raises `RecipeError` for anything else."""
        if not re.fullmatch(r"\d+x\d+x\d+", text):
            raise RecipeError(f"expected a bucket as frames x height x width, such as 17x64x96, got {text!r}")
        return cls(*map(int, text.split("x")))


def choose_bucket(buckets: Sequence[Bucket], num_frames: int, height: int, width: int) -> Bucket:
    """Choose the bucket that crops a video least, among those that it is long enough for.

    Ties go to buckets that do not enlarge it, then to the longest, then to the largest. A video that is too short for
    all buckets gets one of the shortest.

    Args:
        buckets: All buckets.
        num_frames: Frames of the video, at the rate at which it is read.
        height: Height of the video in pixels.
        width: Width of the video in pixels.
    """
    shortest = min(bucket.num_frames for bucket in buckets)
    filled = [bucket for bucket in buckets if bucket.num_frames <= max(num_frames, shortest)]

    def rank(bucket: Bucket) -> tuple[float, bool, int, int]:
        sides = sorted((bucket.height * width, bucket.width * height))
        area = bucket.height * bucket.width
        is_smaller = area <= height * width
        return round(sides[0] / sides[1], 2), is_smaller, bucket.num_frames, area if is_smaller else -area

    return max(filled, key=rank)
