import pytest

from sememe.data.buckets import Bucket, choose_bucket
from sememe.errors import RecipeError

BUCKETS = [Bucket.parse(text) for text in ("17x64x64", "17x64x96", "9x64x96", "9x128x192")]


@pytest.mark.parametrize(
    ("num_frames", "size", "expected"),
    [
        (17, (64, 64), "17x64x64"),
        (40, (640, 960), "17x64x96"),  # the longest of those of its shape
        (16, (640, 960), "9x128x192"),  # too short for 17; the largest that does not enlarge it
        (16, (100, 150), "9x64x96"),
        (16, (70, 70), "9x64x96"),  # rather cropped than too short
        (3, (640, 960), "9x128x192"),  # too short for all
        (17, (960, 640), "17x64x64"),  # the nearest shape
    ],
)
def test_a_video_goes_where_it_fills_and_least_is_cropped(
    num_frames: int, size: tuple[int, int], expected: str
) -> None:
    assert str(choose_bucket(BUCKETS, num_frames, *size)) == expected


@pytest.mark.parametrize("text", ["17x64", "17x64x-1", "17 x 64 x 64", "0x64x64"])
def test_there_is_no_such_bucket(text: str) -> None:
    with pytest.raises(RecipeError, match="bucket"):
        Bucket.parse(text)
