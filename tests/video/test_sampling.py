import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sememe.errors import InputError
from sememe.video.sampling import is_constant, pick_frames, pick_frames_at

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
