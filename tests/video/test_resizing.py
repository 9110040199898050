import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sememe.errors import InputError
from sememe.video import Clip, resample_clip, resize_clip, resize_image
from sememe.video.resizing import is_constant, pick_frames, pick_frames_at
from video_files import corner_names, counting_frames, frame_numbers, quadrants

counts = st.integers(1, 200)
rates = st.floats(0.5, 240)


@given(num_source=counts, num_frames=counts)
def test_even_covers_the_whole_clip(num_source: int, num_frames: int) -> None:
    picks = pick_frames(num_source, num_frames)
    assert len(picks) == num_frames
    assert picks[0] == 0
    assert num_frames == 1 or picks[-1] == num_source - 1
    steps = np.diff(picks)
    assert (steps >= 0).all()
    assert steps.size == 0 or steps.max() - steps.min() <= 1
    if num_source >= num_frames > 1:
        assert (steps > 0).all()


@given(num_source=counts, num_frames=counts)
def test_first_takes_frames_as_they_come(num_source: int, num_frames: int) -> None:
    assert pick_frames(num_source, num_frames, "first").tolist() == [min(i, num_source - 1) for i in range(num_frames)]


@given(num_source=counts, source_fps=rates, target_fps=rates)
def test_fps_takes_what_is_shown_at_each_moment(num_source: int, source_fps: float, target_fps: float) -> None:
    picks = pick_frames(num_source, sampling="fps", source_fps=source_fps, target_fps=target_fps)
    moments = np.arange(len(picks)) / target_fps
    assert (picks / source_fps <= moments + 1e-5).all()
    assert ((picks + 1) / source_fps > moments - 1e-5).all()
    assert abs(len(picks) / target_fps - num_source / source_fps) <= 1 / target_fps + 1e-5


@given(num_source=counts, num_frames=counts, fps=rates, start=st.floats(-5, 5))
def test_times_of_a_constant_rate_give_the_same_picks(
    num_source: int, num_frames: int, fps: float, start: float
) -> None:
    times = start + np.arange(num_source) / fps
    assert pick_frames_at(times, num_frames).tolist() == pick_frames(num_source, num_frames).tolist()
    assert pick_frames_at(np.round(times, 3), num_frames).tolist() == pick_frames(num_source, num_frames).tolist()


@given(
    gaps=st.lists(st.floats(0.01, 2.0), min_size=1, max_size=40),
    num_frames=st.integers(2, 60),
)
def test_varying_times_are_picked_by_time(gaps: list[float], num_frames: int) -> None:
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    picks = pick_frames_at(times, num_frames)
    assert (picks[0], picks[-1]) == (0, len(times) - 1)
    assert (np.diff(picks) >= 0).all()
    if not is_constant(times):
        moments = np.linspace(0, times[-1], num_frames)
        assert (times[picks] <= moments + 1e-5).all()
        following = np.append(times, np.inf)[picks + 1]
        assert (following > moments - 1e-5).all()


def test_even_drops_fractions() -> None:
    assert pick_frames(49, 17).tolist() == list(range(0, 49, 3))
    assert pick_frames(10, 4).tolist() == [0, 3, 6, 9]
    assert pick_frames(8, 4).tolist() == [0, 2, 4, 7]
    assert pick_frames(3, 5).tolist() == [0, 0, 1, 1, 2]
    assert pick_frames(9, 1).tolist() == [0]


def test_fps_keeps_every_third_frame_of_thirty() -> None:
    assert pick_frames(12, sampling="fps", source_fps=30, target_fps=10).tolist() == [0, 3, 6, 9]
    assert pick_frames(12, 6, "fps", source_fps=30, target_fps=10).tolist() == [0, 3, 6, 9, 11, 11]


def test_a_pause_gets_its_share() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.3, 1.3, 1.4])
    assert pick_frames_at(times, 8).tolist() == [0, 2, 3, 3, 3, 3, 3, 5]
    assert pick_frames_at(times, 3, "first").tolist() == [0, 1, 2]
    assert pick_frames_at(times, sampling="fps", target_fps=2).tolist() == [0, 3, 3, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "num_frames"),
        ({}, "needs num_frames"),
        ({"sampling": "first"}, "needs num_frames"),
        ({"sampling": "fps", "source_fps": 8.0}, "needs target_fps"),
        ({"sampling": "fps", "target_fps": 8.0}, "source_fps"),
        ({"sampling": "fps", "target_fps": -1.0, "source_fps": 8.0}, "above 0"),
        ({"num_frames": 4, "target_fps": 8.0}, "no effect"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pick_frames(10, **arguments)


def test_an_empty_clip_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1 frame"):
        pick_frames(0, 3)
    with pytest.raises(InputError, match="at least 1 frame"):
        pick_frames_at(np.zeros(0), 3)


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
