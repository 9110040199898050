"""Paths of subjects."""

import numpy as np

from sememe.evaluation.paths import correlate_paths, find_moving_path, find_path
from sememe.video import Clip
from sememe.world import EVALUATION_SEED, random_script, render_script


def test_a_path_is_that_of_the_covered_area() -> None:
    cover = np.zeros((3, 8, 8))
    cover[0, 1, 2] = 1.0  # row 1, column 2
    cover[1, 4:6, 0:4] = 0.5
    assert find_path(cover)[:2].tolist() == [[2.5 / 8, 1.5 / 8], [2 / 8, 5 / 8]]
    assert np.isnan(find_path(cover)[2]).all()


def test_paths_correlate_by_their_movement_alone() -> None:
    true = np.array([[0.2, 0.5], [0.4, 0.5], [0.6, 0.5], [0.8, 0.5]])
    assert correlate_paths(true, 0.5 * true + 0.1) == 1
    assert correlate_paths(true, 1 - true) == -1
    assert correlate_paths(true, np.full_like(true, np.nan)) == 0
    assert correlate_paths(np.full_like(true, 0.5), true) is None
    # Where the truth is hidden nothing is asked; where only the result is, it counts as its mean.
    hidden = np.where(np.arange(4)[:, None] < 1, np.nan, true)
    assert correlate_paths(hidden, true) == 1
    lost = correlate_paths(true, hidden)
    assert lost is not None
    assert 0 < lost < 1


def test_what_moves_is_found_before_any_backdrop_and_under_a_changing_light() -> None:
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(60, 100, (1, 36, 52, 3)), 7, axis=0)
    for moment in range(7):
        frames[moment, 10:18, 6 * moment : 6 * moment + 8] = (200, 40, 40)
    frames += 8 * np.arange(7)[:, None, None, None]
    path = find_moving_path(Clip(frames.astype(np.uint8), 8.0))
    true = np.stack([(6 * np.arange(7) + 4) / 52, np.full(7, 14 / 36)], axis=1)
    assert np.abs(path - true).max() < 0.08
    still = find_moving_path(Clip(np.repeat(frames[:1], 3, axis=0).astype(np.uint8), 8.0))
    assert np.isnan(still).all()


def test_paths_of_true_renders_are_found_and_those_of_others_are_not() -> None:
    names = ("billiard", "circle", "figure_eight", "jump", "zigzag")
    scripts = [random_script(EVALUATION_SEED + seed, names=names) for seed in range(6)]
    shots = [render_script(script.scene, script.spans, size=32) for script in scripts]
    true, found = [find_path(shot.mask) for shot in shots], [find_moving_path(shot.clip) for shot in shots]
    own = [correlate_paths(*pair) for pair in zip(true, found, strict=True)]
    others = [correlate_paths(*pair) for pair in zip(true, found[1:] + found[:1], strict=True)]
    assert np.mean([value for value in own if value is not None]) > 0.9
    assert np.mean([value for value in others if value is not None]) < 0.6
