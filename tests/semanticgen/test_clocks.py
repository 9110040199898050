"""Slices and latent frames: counts, centres, and positions of one among the other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sememe.errors import InputError
from sememe.semanticgen.clocks import LatentClock, SliceClock


def test_latent_frames_show_the_moments_of_their_frames() -> None:
    # Frame 0 alone, frames 1 to 4, frames 5 to 8; frame i is shown from i / 8 seconds on.
    starts = np.arange(9) / 8
    shown = [0, 1, 1, 1, 1, 2, 2, 2, 2]
    clock = LatentClock(4, 8.0)
    assert clock.frames_at(starts).tolist() == clock.frames_at(starts + 0.12).tolist() == shown
    assert LatentClock(1, 8.0).frames_at(starts).tolist() == list(range(9))


def test_slices_of_the_built_in_rate_lie_within_latent_frames() -> None:
    clock = SliceClock(fps=4.0)
    assert clock.slice_seconds == 0.5
    # Latent frames hold the frames 0, 1..8, 9..16; two slices show frames of each of the latter.
    assert clock.pick_frames(17, 8.0).tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert clock.times(4).tolist() == [0.25, 0.75, 1.25, 1.75]
    assert LatentClock(8, 8.0).positions(np.array([0.0625, 0.625, 1.625])).tolist() == [0.0, 1.0, 2.0]


def test_slices_of_the_paper() -> None:
    clock = SliceClock(fps=1.6)
    assert clock.slice_seconds == 1.25
    assert [clock.count_slices(seconds) for seconds in (5.0, 60.0, 81 / 16)] == [4, 48, 4]
    # 24 frames a second: every 15th frame, from the middle of the first 15 on.
    assert clock.pick_frames(120, 24.0).tolist() == [7, 22, 37, 52, 67, 82, 97, 112]


@pytest.mark.parametrize(("num_frames", "expected"), [(1, [0, 0]), (3, [1, 2]), (5, [1, 3]), (6, [1, 3, 5, 5])])
def test_a_short_video_has_one_slice_and_repeats_its_last_frame(num_frames: int, expected: list[int]) -> None:
    assert SliceClock(fps=4.0).pick_frames(num_frames, 8.0).tolist() == expected


@given(ratio=st.integers(1, 9), fps=st.floats(0.5, 60.0), num_latent_frames=st.integers(1, 300))
def test_positions_invert_times(ratio: int, fps: float, num_latent_frames: int) -> None:
    clock = LatentClock(ratio, fps)
    positions = clock.positions(clock.times(num_latent_frames))
    np.testing.assert_allclose(positions, np.arange(num_latent_frames), atol=1e-9)


def test_slices_are_the_latent_frames_of_a_planner() -> None:
    slices = SliceClock(fps=1.6)
    np.testing.assert_allclose(LatentClock.of_slices(slices).times(5), slices.times(5))


def test_impossible_times_are_refused() -> None:
    with pytest.raises(InputError, match="fps above 0"):
        SliceClock(fps=0.0)
    with pytest.raises(InputError, match="temporal_ratio of at least 1"):
        LatentClock(0, 8.0)
    with pytest.raises(InputError, match="more than 0 seconds, got -1"):
        SliceClock(fps=4.0).count_slices(-1.0)
