"""Rotary tables of CogVideoX: the target's are the stock pipelines', the reference's lie before them."""

from typing import Any

import pytest
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import get_resize_crop_region_for_grid
from jaxtyping import TypeCheckError

from sememe.errors import ModelError
from sememe.video_as_prompt.rotary import (
    ReferenceRotaryPosEmbed,
    TokenExtent,
    cogvideox_reference_rotary,
    cogvideox_rotary,
    rotate,
)
from video_as_prompt.cogvideox_factories import GROUPED, make_backbone


@pytest.mark.parametrize("size", [(8, 6), (4, 6), (8, 12), (10, 4), (16, 18), (2, 2)])
def test_a_target_has_the_stock_tables(size: tuple[int, int]) -> None:
    config = make_backbone().config
    grid = (size[0] // 2, size[1] // 2)
    corners = get_resize_crop_region_for_grid(grid, config.sample_width // 2, config.sample_height // 2)
    expected = get_3d_rotary_pos_embed(config.attention_head_dim, corners, grid, temporal_size=5)
    for got, stock in zip(cogvideox_rotary(config, 5, *size), expected, strict=True):
        assert torch.equal(got, stock)


@pytest.mark.parametrize("num_frames", [4, 5])
def test_a_target_of_the_newer_backbone_has_the_stock_tables(num_frames: int) -> None:
    config = make_backbone(**GROUPED).config
    expected = get_3d_rotary_pos_embed(
        config.attention_head_dim,
        None,
        (2, 3),
        temporal_size=(num_frames + 1) // 2,
        grid_type="slice",
        max_size=(config.sample_height // 2, config.sample_width // 2),
    )
    for got, stock in zip(cogvideox_rotary(config, num_frames, 4, 6), expected, strict=True):
        assert torch.equal(got, stock)
    with pytest.raises(ModelError, match="reach 4x3 tokens"):
        cogvideox_rotary(config, num_frames, 4, 8)


@pytest.mark.parametrize("kind", [{}, GROUPED])
def test_a_reference_lies_before_the_target_at_the_same_places(kind: dict[str, Any]) -> None:
    config = make_backbone(**kind).config
    num_steps = 3 if kind else 6
    target = cogvideox_rotary(config, 6, 4, 6)
    reference = cogvideox_reference_rotary(config, 6, 4, 6)
    angles = [torch.complex(table.cos, table.sin).unflatten(0, (num_steps, 6)) for table in (target, reference)]
    num_time = config.attention_head_dim // 4
    assert torch.equal(angles[0][..., num_time:], angles[1][..., num_time:])
    # One rotation by the whole length takes the reference's times to the target's.
    step = angles[0][1, 0, :num_time]
    torch.testing.assert_close(angles[1][..., :num_time] * step**num_steps, angles[0][..., :num_time])
    # The last frame comes just before the target's first.
    torch.testing.assert_close(angles[1][-1, 0, :num_time], step.conj())


def test_both_shapes_of_tables_rotate_alike() -> None:
    tables = cogvideox_rotary(make_backbone().config, 2, 4, 6)
    features = torch.randn(2, 12, 3, 16)
    wide = [table[None, :, None] for table in tables]
    assert torch.equal(rotate(features, *tables), rotate(features, *wide))


def test_references_of_fewer_tokens_lie_in_the_middle_of_those_that_they_stand_for() -> None:
    rope = ReferenceRotaryPosEmbed(24, (1, 2, 2), 64)
    # As many tokens as the target: the places of the table, frame by frame.
    for got, table in zip(rope.spread([2, 1], 4, 6, TokenExtent(4, 6)), rope(3, 4, 6), strict=True):
        torch.testing.assert_close(got, table, atol=1e-6, rtol=0)
    cos, sin = rope.spread([1, 2], 2, 3, TokenExtent(4, 6, 3))
    angles = torch.atan2(sin[..., 1::2], cos[..., 0::2])[0, :, 0].unflatten(0, (3, 2, 3))
    # The first channel of each axis turns by one radian per place.
    firsts = (0, rope.t_dim // 2, (rope.t_dim + rope.h_dim) // 2)
    time, rows, columns = (angles[..., first] for first in firsts)
    torch.testing.assert_close(rows[0, :, 0], torch.tensor([0.5, 2.5]))
    torch.testing.assert_close(columns[0, 0], torch.tensor([0.5, 2.5, 4.5 - 2 * torch.pi]))
    # The first of two references is spread over the places -6..-4, the second over -3..-1.
    expected = torch.tensor([-5.0 + 2 * torch.pi, -2.75, -1.25])
    torch.testing.assert_close(time[:, 0, 0], expected)


def test_shapes_are_checked() -> None:
    table = torch.zeros(3, 8)
    with pytest.raises(TypeCheckError, match="features"):
        rotate(torch.zeros(1, 3, 8), table, table)
