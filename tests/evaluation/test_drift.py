"""Drift and consistency have the values that their definitions give."""

import numpy as np
import pytest

from sememe.evaluation.drift import MEASURES, find_drift, measure_consistency, measure_drift
from sememe.video import Clip


def test_drift_of_a_line_and_of_a_bump() -> None:
    line = find_drift(np.linspace(0.5, 1.5, 20))
    # Three frames at each end, whose means are 17/19 of the whole change apart; the mean is 1.
    assert line.start_end == pytest.approx(100 * 17 / 19, abs=1e-3)
    assert line.slope == pytest.approx(100, abs=1e-3)
    bump = find_drift(np.array([1.0] * 9 + [3.0] * 2 + [1.0] * 9))
    assert (bump.start_end, bump.slope) == (0, 0)
    assert bump.worst == pytest.approx(100 / 1.2, abs=1e-3)


def test_a_picture_that_stays_does_not_drift() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    found = measure_drift(Clip(np.repeat(frame, 12, axis=0), 8))
    assert found.keys() == MEASURES.keys()
    assert all((each.start_end, each.slope, each.worst) == (0, 0, 0) for each in found.values())


def test_measures_say_what_they_are_named_after() -> None:
    grey = np.full((1, 4, 4, 3), 90, np.uint8)
    assert all(measure(grey)[0] == pytest.approx(0, abs=1e-9) for measure in MEASURES.values())
    red = grey.copy()
    red[..., 0] = 190
    assert MEASURES["saturation"](red)[0] == 100
    assert MEASURES["contrast"](red)[0] == pytest.approx(0, abs=1e-9)
    halves = grey.copy()
    halves[:, :, 2:] = 190
    assert MEASURES["contrast"](halves)[0] == pytest.approx(50)
    assert MEASURES["sharpness"](halves)[0] == pytest.approx(100)


def test_consistency_is_the_mean_of_both_cosines() -> None:
    right, up = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert measure_consistency(np.stack([right] * 4)) == 1
    # To the first: 0, 0, 0 (opposite counts as 0); to the one before: 0, 1, 0.
    assert measure_consistency(np.stack([right, up, up, -right])) == pytest.approx(1 / 6)
