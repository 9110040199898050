"""Structure: its range, its level, and that less is left of it the higher the level."""

import itertools
import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DPTImageProcessorPil

from gen1.depth_factories import make_depth_anything, make_dpt
from sememe.errors import InputError
from sememe.gen1.structure import (
    DepthEstimator,
    embed_level,
    estimate_structure,
    find_edges,
    find_motion,
    normalise,
    read_structure,
    show_structure,
    simplify_structure,
)
from sememe.video import Clip
from sememe.world import random_scene, render


def make_clip(num_frames: int = 3, height: int = 32, width: int = 48) -> Clip:
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    return Clip(frames, 8.0)


@pytest.mark.parametrize(("make", "size"), [(make_dpt, 32), (make_depth_anything, 28)])
def test_depth_has_one_scale_for_the_whole_clip(make: Any, size: int) -> None:
    estimator = DepthEstimator(make(), DPTImageProcessorPil(size={"height": size, "width": size}), batch_size=2)
    clip = make_clip()
    maps = estimator(clip)
    assert maps.shape == (3, 32, 48)
    assert (float(maps.min()), float(maps.max())) == (0.0, 1.0)
    # A clip with a frame left out keeps, up to the scale, the depth of the others: frames do not see each other.
    fewer = estimator(Clip(clip.frames[1:], clip.fps))
    torch.testing.assert_close(normalise(maps[1:]), fewer, atol=1e-5, rtol=1e-4)


def test_maps_without_difference_are_zero() -> None:
    assert torch.equal(normalise(torch.full((2, 3, 3), 7.0)), torch.zeros(2, 3, 3))


def test_edges_are_where_they_are() -> None:
    frames = np.zeros((1, 32, 48, 3), np.uint8)
    frames[0, 8:24, 8:24] = 255
    edges = find_edges(Clip(frames, 8.0))
    assert edges.shape == (1, 32, 48)
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    assert edges[0, 16].nonzero().flatten().tolist() == [7, 23]


def test_motion_is_where_something_moves() -> None:
    random = np.random.default_rng(0)
    still, thing = (cv2.GaussianBlur(random.integers(0, 256, (96, 96, 3), np.uint8), (5, 5), 0) for _ in range(2))
    frames = np.stack([still] * 3)
    for index in range(3):
        frames[index, 32:64, 24 + 3 * index : 56 + 3 * index] = thing[32:64, 24:56]
    motion = find_motion(Clip(frames, 8.0))
    assert motion.shape == (3, 96, 96)
    assert float(motion.max()) == 1.0
    assert motion[0, 40:56, 34:50].mean() > 5 * motion[0, 76:, 76:].mean()
    assert torch.equal(motion[2], motion[1])
    assert torch.equal(find_motion(Clip(frames[:1], 8.0)), torch.zeros(1, 96, 96))


def test_several_kinds_are_a_weighted_mean() -> None:
    kinds = {"zero": lambda clip: torch.zeros(1, 2, 2), "one": lambda clip: torch.ones(1, 2, 2)}
    mixed = estimate_structure(make_clip(1), {"zero": 1.0, "one": 3.0}, kinds)
    assert torch.equal(mixed, torch.full((1, 2, 2), 0.75))
    assert torch.equal(estimate_structure(make_clip(1), {"one": 0.2}, kinds), torch.ones(1, 2, 2))
    for weights, message in (
        ({"two": 1.0}, "'two'"),
        ({"depth": 1.0}, "no depth_estimator"),
    ):
        with pytest.raises(InputError, match=message):
            estimate_structure(make_clip(1), weights, kinds)


def test_structure_is_shown_and_read_again() -> None:
    maps = torch.arange(2 * 4 * 4).view(2, 4, 4) / 31
    shown = show_structure(maps, 8.0)
    source = Clip(np.zeros((2, 4, 4, 3), np.uint8), 8.0)
    read = read_structure(shown, source)
    assert (read - maps).abs().max() <= 0.5 / 255 + 1e-6
    longer = Clip(np.concatenate([shown.frames, shown.frames]), 8.0)
    assert torch.equal(read_structure(longer, source), read)
    with pytest.raises(InputError, match="at least the source's 2 frames, got 1"):
        read_structure(Clip(shown.frames[:1], 8.0), source)


def energy(maps: torch.Tensor) -> float:
    """Mean squared difference of neighbouring pixels."""
    maps = maps.double()
    return float(maps.diff(dim=-1).square().mean() + maps.diff(dim=-2).square().mean())


@given(seed=st.integers(0, 999), height=st.integers(9, 70), width=st.integers(9, 70))
@settings(max_examples=25)
def test_less_is_left_the_higher_the_level(seed: int, height: int, width: int) -> None:
    maps = torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(seed))
    levels = [simplify_structure(maps, level) for level in range(8)]
    assert torch.equal(levels[0], maps)
    energies = [energy(each) for each in levels]
    assert all(low <= high + 1e-12 for high, low in itertools.pairwise(energies))
    assert all(0.0 <= float(each.min()) <= float(each.max()) <= 1.0 + 1e-6 for each in levels)


def test_less_is_left_of_a_scene() -> None:
    depth = torch.from_numpy(render(random_scene(3), None, num_frames=2, size=64).depth).float()
    maps = normalise(depth)[None]
    energies = [energy(simplify_structure(maps, level)) for level in range(8)]
    assert all(low < high for high, low in itertools.pairwise(energies[:7]))


def test_levels_are_in_range_and_each_has_its_own_channels() -> None:
    levels = torch.arange(8.0)
    channels = embed_level(levels)
    assert channels.shape == (8, 4)
    torch.testing.assert_close(channels.square().sum(dim=1), torch.full((8,), 2.0))
    assert len({tuple(channel.tolist()) for channel in channels}) == 8
    torch.testing.assert_close(channels[1], torch.tensor([math.sin(math.pi / 8), math.cos(math.pi / 8), 1.0, 0.0]))
    for wrong in (-1, 8):
        with pytest.raises(InputError, match=rf"structure_level in 0\.\.7, got {wrong}"):
            simplify_structure(torch.zeros(1, 1, 8, 8), wrong)
