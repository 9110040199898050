"""The oracle: a clip is what it is nearest to."""

import numpy as np
import pytest

from sememe.errors import InputError
from sememe.evaluation.oracle import Oracle, Verdict, cell_colors, count_confusions
from sememe.video import Clip
from sememe.world import conditions, random_scene, render


def flat(level: int, num_frames: int = 3, height: int = 32, width: int = 32) -> Clip:
    return Clip(np.full((num_frames, height, width, 3), level, np.uint8), 8)


def test_distances_are_those_of_the_definition() -> None:
    oracle = Oracle({"dark": flat(0), "middle": flat(102), "light": flat(255)})
    assert oracle.measure(flat(51)) == pytest.approx([0.04, 0.04, 0.64], abs=1e-6)
    assert [oracle.judge(flat(60), name).rank for name in ("middle", "dark", "light")] == [1, 2, 3]
    assert oracle.nearest(flat(250)) == "light"


def test_verdict() -> None:
    oracle = Oracle({"dark": flat(0), "middle": flat(102), "light": flat(255)})
    verdict = oracle.judge(flat(60), "light")
    assert (verdict.nearest, verdict.rank, verdict.is_right) == ("middle", 3, False)
    assert oracle.judge(flat(60), "middle").is_right
    assert verdict.distance == pytest.approx(((255 - 60) / 255) ** 2, rel=1e-5)


def test_the_first_frame_does_not_count() -> None:
    clip = flat(0)
    frames = clip.frames.copy()
    frames[0] = 255
    assert Oracle({"dark": clip}).measure(Clip(frames, 8))[0] == 0


@pytest.mark.parametrize(
    ("height", "width", "cells"), [(32, 32, 8 * 8), (64, 96, 8 * 12), (33, 50, 8 * 12), (16, 16, 64)]
)
def test_cells_are_means_and_cover_every_pixel(height: int, width: int, cells: int) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    features = cell_colors(Clip(frames, 8))
    assert features.shape == (2 * cells * 3,)
    cell = max(1, round(height / 8))
    assert features.reshape(2, -1, 3)[0, 0] == pytest.approx(frames[1, :cell, :cell].mean(axis=(0, 1)) / 255, abs=1e-6)
    changed = frames.copy()
    changed[2, -1, -1] ^= 255
    assert not np.array_equal(features, cell_colors(Clip(changed, 8)))


def test_true_renders_are_recognised_through_damage() -> None:
    names = conditions()[::4]
    scene = random_scene(10_000_007)
    clips = {name: render(scene, name).clip for name in names}
    oracle = Oracle(clips)
    assert all(oracle.judge(clip, name).is_right for name, clip in clips.items())
    noise = np.random.default_rng(0).normal(0, 20, clips[names[0]].frames.shape)
    noisy = {name: Clip((clip.frames + noise).clip(0, 255).astype(np.uint8), 8) for name, clip in clips.items()}
    assert all(oracle.judge(clip, name).is_right for name, clip in noisy.items())
    still = render(scene, None).clip
    assert oracle.measure(still).min() > 0


def test_wrong_input() -> None:
    with pytest.raises(InputError, match="at least one candidate"):
        Oracle({})
    with pytest.raises(InputError, match="one shape"):
        Oracle({"a": flat(0), "b": flat(0, num_frames=4)})
    oracle = Oracle({"a": flat(0), "b": flat(9)})
    with pytest.raises(InputError, match="like the candidates"):
        oracle.measure(flat(0, height=16))
    with pytest.raises(InputError, match=r"one of the 2 candidates, got 'c'"):
        oracle.judge(flat(0), "c")
    with pytest.raises(InputError, match="at least 2 frames"):
        Oracle({"a": flat(0, num_frames=1)})


def test_confusions_are_counted() -> None:
    pairs = [("a", "b", 2), ("a", "a", 1), ("c", "a", 2), ("a", "b", 7)]
    confusions = count_confusions([Verdict(expected, nearest, rank, 0.0) for expected, nearest, rank in pairs])
    assert [(each.expected, each.nearest, each.count) for each in confusions] == [("a", "b", 2), ("c", "a", 1)]
