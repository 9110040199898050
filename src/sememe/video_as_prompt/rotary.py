"""Compute rotary tables that place a reference at the target's rows and columns, at times before it.

Video-As-Prompt calls this the temporally biased RoPE (arXiv 2510.20888, section 3.3): a reference of T latent frames
has the temporal indices -T..-1 and at the target's own height and width indices, so that nothing suggests that a
pixel of the target corresponds to a pixel of the reference at the same time. Of several references the first is the
farthest in time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from jaxtyping import Float
from torch import Tensor

from sememe.errors import ModelError
from sememe.video_as_prompt.shapes import Heads, RotaryTable

Positions = Float[Tensor, " position"]


@dataclass(frozen=True)
class TokenExtent:
    """Size over which the positions of a reference are spread, in tokens of the target.

    Attributes:
        height: Rows.
        width: Columns.
        num_frames: Frames per reference; None for as many as the reference has.
    """

    height: int
    width: int
    num_frames: int | None = None


class RotaryTables(NamedTuple):
    """Cosine and sine of every token's rotation, with both channels of a pair adjacent."""

    cos: RotaryTable
    sin: RotaryTable


class ReferenceRotaryPosEmbed(WanRotaryPosEmbed):
    """Wan's rotary tables, read at the temporal indices -num_frames..-1.

    Rotating by a negative angle keeps the cosine and negates the sine, so the rows of the stock table are reused in
    reverse order.
    """

    def forward(self, num_frames: int, height: int, width: int) -> RotaryTables:
        """Make the tables of consecutive references.

        Args:
            num_frames: Total number of latent frames of the references, after patching.
            height: Rows of tokens.
            width: Columns of tokens.

        Raises:
            ModelError: If the references are longer than the stock table.
        """
        if max(num_frames + 1, height, width) > self.max_seq_len:
            raise ModelError(
                f"the reference has {num_frames}x{height}x{width} tokens (frames x rows x columns), but this model's "
                f"position table ends at {self.max_seq_len - 1}; use fewer or shorter references"
            )
        parts = [self.t_dim, self.h_dim, self.w_dim]
        time_cos, row_cos, column_cos = self.freqs_cos.split(parts, dim=1)
        time_sin, row_sin, column_sin = self.freqs_sin.split(parts, dim=1)
        past_cos = time_cos[1 : num_frames + 1].flip(0)
        past_sin = -time_sin[1 : num_frames + 1].flip(0)
        # (token, head_dim) -> (1, token, 1, head_dim)
        cos = _spread(past_cos, row_cos[:height], column_cos[:width])
        sin = _spread(past_sin, row_sin[:height], column_sin[:width])
        return RotaryTables(cos[None, :, None], sin[None, :, None])

    def spread(self, lengths: Sequence[int], height: int, width: int, extent: TokenExtent) -> RotaryTables:
        """Make the tables of references with fewer tokens than the target, spread evenly over the target's grid.

        Args:
            lengths: Number of latent frames of each reference, after patching.
            height: Rows of tokens.
            width: Columns of tokens.
            extent: Rows, columns and frames of the target.
        """
        spans = [extent.num_frames or length for length in lengths]
        starts = [-sum(spans[place:]) for place in range(len(spans))]
        time = [start + _spread_places(*counts) for start, *counts in zip(starts, lengths, spans, strict=True)]
        axes = (torch.cat(time), _spread_places(height, extent.height), _spread_places(width, extent.width))
        widths = (self.t_dim, self.h_dim, self.w_dim)
        tables = [
            get_1d_rotary_pos_embed(dim, places, use_real=True, freqs_dtype=torch.float64)
            for dim, places in zip(widths, axes, strict=True)
        ]
        cos, sin = (_spread(*(table.to(self.freqs_cos) for table in kind)) for kind in zip(*tables, strict=True))
        return RotaryTables(cos[None, :, None], sin[None, :, None])


def cogvideox_rotary(
    config: FrozenDict, num_frames: int, height: int, width: int, device: torch.device | str | None = None
) -> RotaryTables:
    """Make CogVideoX's tables of a target, equal to those of the stock pipelines.

    Args:
        config: Configuration of the transformer.
        num_frames: Number of latent frames.
        height: Rows of latents.
        width: Columns of latents.
        device: Device of the tables.

    Raises:
        ModelError: If the target is larger than the grid of positions (CogVideoX 1.5).
    """
    # A last group of fewer frames than patch_size_t counts as one.
    num_steps = -(-num_frames // (config.patch_size_t or 1))
    return _make_cogvideox_tables(config, 0, num_steps, height, width, device)


def cogvideox_reference_rotary(
    config: FrozenDict, num_frames: int, height: int, width: int, device: torch.device | str | None = None
) -> RotaryTables:
    """Make CogVideoX's tables of references of the target's size, with `num_frames` latent frames in total.

    Arguments and errors are those of `cogvideox_rotary`.
    """
    num_steps = num_frames // (config.patch_size_t or 1)
    return _make_cogvideox_tables(config, -num_steps, num_steps, height, width, device)


def rotate(features: Heads, cos: RotaryTable, sin: RotaryTable) -> Heads:
    """Rotate adjacent pairs of channels; the result has the dtype of `features`."""
    if cos.ndim == 2:
        # (token, head_dim) -> (token, 1, head_dim), which broadcasts over batch and heads
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    # (batch, token, head, head_dim) -> two of (batch, token, head, head_dim / 2), and back
    even, odd = features.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(features)


def _make_cogvideox_tables(
    config: FrozenDict, first: int, num_steps: int, height: int, width: int, device: torch.device | str | None
) -> RotaryTables:
    """Make tables for the temporal indices first..first + num_steps - 1."""
    rows, columns = _cogvideox_places(config, height // config.patch_size, width // config.patch_size)
    time = torch.arange(first, first + num_steps, dtype=torch.float32)
    # A quarter of the channels encodes time; rows and columns have three eighths each.
    widths = (config.attention_head_dim // 4, *(2 * [config.attention_head_dim // 8 * 3]))
    axes = zip(widths, (time, rows, columns), strict=True)
    tables = [get_1d_rotary_pos_embed(width, places.to(device), use_real=True) for width, places in axes]
    cos, sin = zip(*tables, strict=True)
    return RotaryTables(_spread(*cos), _spread(*sin))


def _cogvideox_places(
    config: FrozenDict, num_rows: int, num_columns: int
) -> tuple[Float[Tensor, " row"], Float[Tensor, " column"]]:
    """Place rows and columns of tokens on the grid that the model was trained with.

    CogVideoX 1.5 counts from the corner. CogVideoX 1.0 fits the grid into the native one, centred and with its shape
    kept, and spaces the tokens evenly over it.
    """
    native_rows, native_columns = config.sample_height // config.patch_size, config.sample_width // config.patch_size
    if config.patch_size_t is not None:
        if num_rows > native_rows or num_columns > native_columns:
            raise ModelError(
                f"this model's positions reach {native_rows}x{native_columns} tokens (rows x columns), "
                f"got {num_rows}x{num_columns}; use a smaller size"
            )
        return torch.arange(num_rows, dtype=torch.float32), torch.arange(num_columns, dtype=torch.float32)
    if num_rows / num_columns > native_rows / native_columns:
        fitted_rows, fitted_columns = native_rows, round(native_rows / num_rows * num_columns)
    else:
        fitted_rows, fitted_columns = round(native_columns / num_columns * num_rows), native_columns
    top, left = round((native_rows - fitted_rows) / 2), round((native_columns - fitted_columns) / 2)
    return _space_evenly(top, top + fitted_rows, num_rows), _space_evenly(left, left + fitted_columns, num_columns)


def _space_evenly(start: int, stop: int, count: int) -> Positions:
    # The stock grid scales its end and not its extent; the weights were trained with it.
    return torch.linspace(start, stop * (count - 1) / count, count, dtype=torch.float32)


def _spread_places(count: int, extent: int) -> Positions:
    """Return the centres of `count` equal parts of the positions 0..extent - 1."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) * (extent / count) - 0.5


def _spread(
    time: Float[Tensor, "time time_dim"],
    rows: Float[Tensor, "row row_dim"],
    columns: Float[Tensor, "column column_dim"],
) -> Float[Tensor, "time*row*column head_dim"]:
    """Combine the tables of the three axes into one over all tokens, time outermost."""
    shape = (len(time), len(rows), len(columns), -1)
    grid = (time[:, None, None], rows[None, :, None], columns[None, None, :])
    # (time, row, column, head_dim) -> (token, head_dim)
    return torch.cat([axis.expand(shape) for axis in grid], dim=-1).flatten(0, 2)
