"""Windows: every frame is covered, shares add up to 1, and one window leaves a prediction as it is."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sememe.errors import InputError
from sememe.gen1.windows import make_windows, predict_windows


@given(num_frames=st.integers(1, 100), length=st.integers(1, 16), data=st.data())
def test_windows_cover_the_clip(num_frames: int, length: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, length - 1))
    windows = make_windows(num_frames, length, overlap)
    totals, counts = torch.zeros(num_frames, dtype=torch.float64), torch.zeros(num_frames)
    for window in windows:
        assert len(window.weights) == min(length, num_frames)
        assert min(window.weights) > 0
        totals[window.frames] += torch.tensor(window.weights, dtype=torch.float64)
        counts[window.frames] += 1
    torch.testing.assert_close(totals, torch.ones_like(totals))
    assert (counts >= 1).all()
    for window in windows:
        for place, weight in enumerate(window.weights):
            assert (weight == 1.0) == (counts[window.start + place] == 1)
    for before, after in itertools.pairwise(windows):
        assert before.start + length - after.start >= overlap


def test_weights_rise_and_fall() -> None:
    first, second = make_windows(6, 4, 2)
    assert (first.start, second.start) == (0, 2)
    assert first.weights == pytest.approx((1.0, 1.0, 2 / 3, 1 / 3))
    assert second.weights == pytest.approx((1 / 3, 2 / 3, 1.0, 1.0))


def test_what_sees_frames_alone_is_as_without_windows() -> None:
    video = torch.randn(2, 3, 11, 4, 4, generator=torch.Generator().manual_seed(0))
    windows = make_windows(11, 4, 2)
    found = predict_windows(windows, lambda frames: video[:, :, frames].tanh(), 11)
    torch.testing.assert_close(found, video.tanh(), atol=1e-6, rtol=0)
    assert torch.equal(predict_windows(make_windows(11, 16, 2), lambda frames: video[:, :, frames], 11), video)
    # Frames of the clip's beginning are in one window only.
    assert torch.equal(found[:, :, :2], video.tanh()[:, :, :2])


def test_neighbours_turn_into_each_other() -> None:
    """Two windows that disagree are mixed step by step, so that no two frames differ by more than a share of it."""
    windows = make_windows(10, 6, 4)
    values = {window.start: float(place) for place, window in enumerate(windows)}
    found = predict_windows(windows, lambda frames: torch.full((1, 1, 6, 1, 1), values[frames.start]), 10).flatten()
    assert found[0] == 0.0
    assert found[-1] == len(windows) - 1
    assert (found.diff() >= -1e-6).all()
    assert found.diff().max() <= 0.5


def test_an_overlap_of_a_whole_window_is_refused() -> None:
    with pytest.raises(InputError, match="window_overlap below the 4 frames"):
        make_windows(9, 4, 4)
