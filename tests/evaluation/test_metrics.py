"""Metrics against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sememe.backbones.autoencoder import LatentGrid
from sememe.errors import InputError
from sememe.evaluation.metrics import PSNR_LIMIT, GridDifferences, compare_grids, measure_grid, psnr, ssim
from sememe.video import Clip
from sememe.world import random_scene, render

GRID = LatentGrid(temporal_ratio=4, spatial_ratio=8, num_channels=16)


def sloped(step: int, jump: int, ratio: int, num_frames: int = 3, height: int = 24, width: int = 32) -> Clip:
    """A slope in both directions that rises by `jump` more at every line of a grid."""
    y, x = np.ogrid[:height, :width]
    picture = step * (x + y) + jump * (x // ratio + y // ratio)
    return Clip(np.broadcast_to(picture[None, ..., None], (num_frames, height, width, 3)).astype(np.uint8), 8)


def fading(step: int, jump: int, ratio: int, num_frames: int = 9) -> Clip:
    """Frames that brighten by `step`, and by `jump` more where a latent frame begins (the first frame has its own)."""
    t = np.arange(num_frames)
    levels = step * t + jump * ((t + ratio - 1) // ratio)
    return Clip(np.broadcast_to(levels[:, None, None, None], (num_frames, 16, 16, 3)).astype(np.uint8), 8)


@pytest.mark.parametrize("ratio", [2, 4, 8])
@pytest.mark.parametrize("jump", [0, 1, 3])
def test_tiles(ratio: int, jump: int) -> None:
    grid = LatentGrid(4, ratio, 16)
    made, true = measure_grid(sloped(1, jump, ratio), grid), measure_grid(sloped(2, 0, ratio), grid)
    assert (made.across_tiles, made.within_tiles) == (1 + jump, 1)
    tiles = compare_grids([made], [true], [0]).tiles
    assert (tiles.value, tiles.low, tiles.high) == (1 + jump, 1 + jump, 1 + jump)


def test_tiles_of_another_size_are_not_the_grids() -> None:
    """Every second line of a finer grid lies within the tiles of the grid."""
    made, true = measure_grid(sloped(1, 4, 4), GRID), measure_grid(sloped(1, 0, 8), GRID)
    assert made.across_tiles == 5
    assert 1 < made.within_tiles < 5
    assert compare_grids([made], [true], [0]).tiles.value == pytest.approx(5 / made.within_tiles)


def test_the_first_frame_has_no_say_in_tiles() -> None:
    clip = sloped(1, 0, 8)
    frames = clip.frames.copy()
    frames[0] = sloped(1, 5, 8).frames[0]
    assert measure_grid(Clip(frames, 8), GRID).across_tiles == 1


@pytest.mark.parametrize("ratio", [2, 4])
@pytest.mark.parametrize("jump", [0, 2])
def test_seams(ratio: int, jump: int) -> None:
    grid = LatentGrid(ratio, 8, 16)
    made, true = measure_grid(fading(3, jump, ratio), grid), measure_grid(fading(5, 0, ratio), grid)
    assert (made.across_latent_frames, made.within_latent_frames) == (3 + jump, 3)
    assert compare_grids([made], [true], [0]).seams.value == pytest.approx((3 + jump) / 3)


def test_flicker() -> None:
    def blinking(level: int) -> GridDifferences:
        levels = np.array([0, level] * 3, np.uint8)[:, None, None, None]
        return measure_grid(Clip(np.broadcast_to(levels, (6, 16, 16, 3)).copy(), 8), GRID)

    assert blinking(10).second == 20
    assert measure_grid(fading(7, 0, 4), GRID).second == 0, "an even fade does not flicker"
    assert compare_grids([blinking(30)], [blinking(10)], [0]).flicker.value == 3


def test_clips_are_averaged_before_they_are_divided() -> None:
    made = [measure_grid(sloped(*steps, 8), GRID) for steps in ((1, 3), (3, 0))]
    true = [measure_grid(sloped(2, 0, 8), GRID)] * 2
    traces = compare_grids(made, true, [0, 1])
    assert traces.tiles.value == (4 + 3) / (1 + 3)
    assert (traces.tiles.low, traces.tiles.high) == (1, 4)


def test_true_renders_and_still_clips_have_none() -> None:
    render_differences = measure_grid(render(random_scene(3), "melt", num_frames=9, size=32).clip, GRID)
    flat = measure_grid(Clip(np.full((9, 32, 32, 3), 7, np.uint8), 8), GRID)
    for differences in (render_differences, flat):
        traces = compare_grids([differences], [differences], [0])
        assert traces.tiles.value == traces.seams.value == traces.flicker.value == 1


def flat(*levels: int, size: int = 8) -> Clip:
    return Clip(np.stack([np.full((size, size, 3), level, np.uint8) for level in levels]), 8)


def noise(seed: int, size: int = 12) -> Clip:
    return Clip(np.random.default_rng(seed).integers(0, 256, (3, size, size, 3), dtype=np.uint8), 8)


def test_psnr_of_a_known_error() -> None:
    assert psnr(flat(0, 51, 51), flat(0, 0, 0)) == pytest.approx(-10 * math.log10(0.04), abs=1e-4)
    assert psnr(flat(0, 255), flat(0, 0)) == pytest.approx(0, abs=1e-6)
    assert psnr(flat(3, 4), flat(3, 4)) == PSNR_LIMIT


def test_psnr_leaves_the_first_frame_out() -> None:
    assert psnr(flat(255, 7), flat(0, 7)) == PSNR_LIMIT
    assert psnr(flat(255, 7), flat(0, 7), skip_first=False) == pytest.approx(-10 * math.log10(0.5))
    assert psnr(flat(255), flat(0)) == pytest.approx(0), "the only frame counts"


@given(st.integers(0, 255), st.integers(0, 255))
@settings(max_examples=30)
def test_ssim_of_flat_clips(first: int, second: int) -> None:
    """Without variance only the luminance term is left."""
    a, b, c = first / 255, second / 255, 0.01**2
    assert ssim(flat(0, first), flat(0, second)) == pytest.approx((2 * a * b + c) / (a * a + b * b + c), abs=1e-6)


def test_ssim_of_equal_and_of_opposite_clips() -> None:
    clip = noise(1)
    assert ssim(clip, clip) == pytest.approx(1)
    opposite = Clip(255 - clip.frames, 8)
    assert ssim(clip, opposite) < -0.5
    assert ssim(clip, opposite) == pytest.approx(ssim(opposite, clip))


def test_ssim_of_one_window() -> None:
    """A picture of 7x7 has a single window: the formula by hand."""
    first, second = noise(2, size=7), noise(3, size=7)
    expected = []
    for frame in (1, 2):
        for channel in range(3):
            x, y = first.frames[frame, ..., channel] / 255, second.frames[frame, ..., channel] / 255
            covariance = ((x - x.mean()) * (y - y.mean())).mean()
            luminance = (2 * x.mean() * y.mean() + 1e-4) / (x.mean() ** 2 + y.mean() ** 2 + 1e-4)
            expected.append(luminance * (2 * covariance + 9e-4) / (x.var() + y.var() + 9e-4))
    assert ssim(first, second) == pytest.approx(np.mean(expected), abs=1e-6)


def test_wrong_input() -> None:
    for metric in (psnr, ssim):
        with pytest.raises(InputError, match="one shape"):
            metric(flat(0, 0), flat(0, 0, 0))
    with pytest.raises(InputError, match="at least 7 pixels"):
        ssim(flat(0, 0, size=6), flat(0, 0, size=6))
