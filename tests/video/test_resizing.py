import numpy as np
import pytest

from sememe.errors import InputError
from sememe.video import Clip, resample_clip, resize_clip, resize_image
from video_files import corner_names, counting_frames, frame_numbers, quadrants


def test_cover_crops_the_middle() -> None:
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = 255
    assert (resize_image(picture, 20, 20) == 255).all()
    assert (resize_image(picture, 40, 40) == 255).all()
    assert (resize_image(picture, 10, 10) == 255).all()


def test_contain_shows_everything_between_bars() -> None:
    resized = resize_image(quadrants(20, 60), 60, 60, "contain")
    assert resized[:20].max() == 0
    assert resized[40:].max() == 0
    assert corner_names(resized[20:40]) == "rgbw"


def test_stretch_fills_everything() -> None:
    resized = resize_image(quadrants(20, 60), 64, 30, "stretch")
    assert resized.shape == (64, 30, 3)
    assert corner_names(resized) == "rgbw"


def test_shrinking_averages() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = resize_image(stripes, 16, 16)
    assert np.abs(shrunk.astype(int) - 127).max() <= 2
    # One side shrinks while the other grows.
    assert np.abs(resize_image(stripes, 128, 16, "stretch").astype(int) - 127).max() <= 2


def test_wide_pixels_are_squared() -> None:
    circle = np.zeros((40, 20, 3), np.uint8)
    rows, columns = np.mgrid[0:40, 0:20]
    circle[((rows - 19.5) / 15) ** 2 + ((columns - 9.5) / 7.5) ** 2 <= 1] = 255
    squared = resize_image(circle, 40, 40, pixel_aspect=2.0)
    lit = squared[..., 0] > 127
    assert abs(int(lit.any(axis=0).sum()) - int(lit.any(axis=1).sum())) <= 2


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (17, 31)])
@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
def test_any_size_can_be_made(size: tuple[int, int], fit: str) -> None:
    clip = Clip(np.full((2, 13, 29, 3), 90, np.uint8), 8)
    assert resize_clip(clip, *size, fit=fit).size == size  # type: ignore[arg-type]


def test_same_size_is_left_alone() -> None:
    clip = Clip(counting_frames(2), 8)
    assert resize_clip(clip, 32, 48) is clip


def test_sizes_below_one_pixel_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1 pixel"):
        resize_clip(Clip(counting_frames(2), 8), 0, 4)


def test_resample_even_keeps_the_duration() -> None:
    clip = resample_clip(Clip(counting_frames(31), 30), 11)
    assert frame_numbers(clip) == list(range(0, 31, 3))
    assert clip.fps == pytest.approx(10)


def test_resample_by_rate_and_first() -> None:
    clip = Clip(counting_frames(30), 30)
    assert frame_numbers(resample_clip(clip, sampling="fps", fps=10)) == list(range(0, 30, 3))
    assert resample_clip(clip, sampling="fps", fps=10).fps == 10
    assert frame_numbers(resample_clip(clip, 3, "first")) == [0, 1, 2]
    assert resample_clip(clip, 3, "first").fps == 30


def test_one_frame_becomes_many() -> None:
    clip = resample_clip(Clip(counting_frames(1), 8), 5)
    assert (clip.num_frames, clip.fps) == (5, 8)
