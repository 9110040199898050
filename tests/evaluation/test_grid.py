"""Traces of the latent grid in clips whose ratios are known exactly."""

import numpy as np
import pytest

from sememe.backbones.autoencoder import LatentGrid
from sememe.evaluation.grid import GridDifferences, compare_grids, measure_grid
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
