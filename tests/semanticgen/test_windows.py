"""Attention in windows equals full attention under a mask, whatever the lengths."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semanticgen.renderer_factories import lay_out
from sememe.errors import InputError
from sememe.semanticgen.clocks import LatentClock, SliceClock
from sememe.semanticgen.windows import SliceShape, WindowLayout, make_layout

LENGTHS = st.integers(1, 13)
SECONDS = st.sampled_from([0.1, 0.7, 1.0, 2.5, 4.0, 5.0, 100.0])


def window_of(times: np.ndarray, end: float, seconds: float, layer: int) -> np.ndarray:
    """The window of each moment, of which the last half one is full."""
    halves = np.minimum(np.floor(2 * times / seconds + 1e-6), max(1, np.floor(2 * end / seconds + 1e-6)) - 1)
    return (halves + layer % 2) // 2


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)


@settings(max_examples=60)
@given(
    num_frames=LENGTHS,
    num_slices=st.integers(0, 13),
    seconds=SECONDS,
    slice_fps=st.sampled_from([1.6, 4.0]),
    clock=st.sampled_from([LatentClock(8, 8.0), LatentClock(4, 16.0), LatentClock(1, 3.0)]),
    ends=st.sampled_from([(), (1.3,), (0.4, 2.0)]),
    layer=st.integers(0, 1),
)
def test_windows_equal_masked_attention(
    num_frames: int,
    num_slices: int,
    seconds: float,
    slice_fps: float,
    clock: LatentClock,
    ends: tuple[float, ...],
    layer: int,
) -> None:
    slice_times = SliceClock(slice_fps).times(num_slices)
    slices = SliceShape(slice_times, 1, 2) if num_slices else None
    layout = make_layout(clock, (num_frames, 2, 2), slices, window_seconds=seconds, segment_ends=ends)
    random = torch.Generator().manual_seed(num_frames)
    latents, semantic = (torch.randn(1, size, 6, generator=random) for size in (4 * num_frames, 2 * num_slices))
    ordered = layout.order(latents, semantic if num_slices else None)
    parts = [run.join(attend(*3 * [run.split(ordered)])) for run in layout.runs(layer)]
    found = layout.pick_latents(torch.cat(parts, dim=1))

    joint = torch.cat([latents, semantic], dim=1)
    times = np.concatenate([clock.times(num_frames).repeat(4), slice_times.repeat(2)])
    end = ((num_frames - 1) * clock.temporal_ratio + 1) / clock.fps
    windows = torch.from_numpy(window_of(times, end, seconds, layer))
    expected = attend(joint, joint, joint, windows[:, None] == windows[None])[:, : 4 * num_frames]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def sizes(layout: WindowLayout, layer: int) -> list[int]:
    return [run.size for run in layout.runs(layer) for _ in range(run.num_windows)]


def test_windows_shift_by_half_and_do_not_wrap() -> None:
    # 9 latent frames of 12 tokens and 16 slices of 4: 8 seconds, in windows of 4 seconds.
    layout = lay_out(9, 16, window_seconds=4.0)
    assert sizes(layout, 0) == [5 * 12 + 8 * 4, 4 * 12 + 8 * 4]
    assert sizes(layout, 1) == [3 * 12 + 4 * 4, 4 * 12 + 8 * 4, 2 * 12 + 4 * 4]
    assert sizes(layout, 2) == sizes(layout, 0)


def test_what_does_not_fill_half_a_window_joins_the_half_before() -> None:
    # 9.1 seconds: one more latent frame and two more slices than 8 seconds have.
    layout = lay_out(10, 18, window_seconds=4.0)
    assert sizes(layout, 0) == [5 * 12 + 8 * 4, 5 * 12 + 10 * 4]
    assert sizes(layout, 1) == [3 * 12 + 4 * 4, 4 * 12 + 8 * 4, 3 * 12 + 6 * 4]
    # 10.1 seconds: another half, which is full.
    layout = lay_out(11, 20, window_seconds=4.0)
    assert sizes(layout, 0) == [5 * 12 + 8 * 4, 4 * 12 + 8 * 4, 2 * 12 + 4 * 4]
    # Shorter than half a window.
    assert sizes(lay_out(2, 2, window_seconds=4.0), 1) == [2 * 12 + 2 * 4]


@pytest.mark.parametrize("layer", [0, 1])
def test_the_largest_window_does_not_grow_with_the_length(layer: int) -> None:
    largest = [max(sizes(lay_out(length, 2 * length, window_seconds=4.0), layer)) for length in (20, 40, 400)]
    assert largest[0] == largest[1] == largest[2]
    # Nearly all windows of an hour are one reshape.
    assert len(lay_out(3601, 7200, window_seconds=4.0).runs(layer)) <= 3


def test_kinds_positions_and_texts_follow_the_tokens() -> None:
    layout = lay_out(5, 8, window_seconds=4.0, segment_ends=(1.0, 3.0))
    kinds, positions = layout.kinds(layout.pieces), layout.positions(layout.pieces)
    assert kinds.sum() == 8 * 4
    assert layout.text_lengths(layout.pieces) == (2 * 12 + 2 * 4, 2 * 12 + 4 * 4, 12 + 2 * 4)
    # The latents' own positions are whole numbers, in the order of the stock table.
    grid = torch.stack(torch.meshgrid(*map(torch.arange, (5, 4, 3)), indexing="ij"), dim=-1).flatten(0, 2)
    torch.testing.assert_close(positions[kinds == 0], grid.double(), atol=1e-9, rtol=0)
    # Two rows of slices over four rows of latents, two columns over three.
    semantic = positions[kinds == 1]
    assert semantic[:, 1].unique().tolist() == [0.5, 2.5]
    torch.testing.assert_close(semantic[:, 2].unique(), torch.tensor([0.25, 1.75]).double())
    torch.testing.assert_close(semantic[::4, 0], torch.from_numpy(np.array(layout.slice_positions)))


def test_a_segment_without_a_frame_is_not_heard() -> None:
    layout = lay_out(5, segment_ends=(0.7, 0.8))
    assert layout.text_lengths(layout.pieces) == (24, 0, 36)


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(InputError, match="window_seconds above 0, got 0"):
        lay_out(5, window_seconds=0.0)
    for ends in [(0.0,), (2.0, 2.0), (3.0, 1.0), (float("nan"),)]:
        with pytest.raises(InputError, match="ends of segments as rising seconds"):
            lay_out(5, segment_ends=ends)
