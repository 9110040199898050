"""Rotary positions of the reference: the same places as the target, at times before it.

Video-As-Prompt calls this the temporally biased RoPE (arXiv 2510.20888, section 3.3): a reference of T latent frames
sits at the temporal indices -T..-1 and at the target's own height and width indices, so that nothing suggests that a
pixel of the target corresponds to a pixel of the reference at the same time.
"""

from typing import NamedTuple

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from sememe.errors import ModelError


class RotaryTables(NamedTuple):
    """Cosine and sine of every token's rotation, each (1, token, 1, head_dim), pairs of channels side by side."""

    cos: torch.Tensor
    sin: torch.Tensor


class ReferenceRotaryPosEmbed(WanRotaryPosEmbed):
    """Wan's rotary tables, read at the temporal indices -num_frames..-1.

    Rotating by a negative angle keeps the cosine and negates the sine, so the rows of the stock table serve in
    reverse order and nothing is computed anew.
    """

    def forward(self, num_frames: int, height: int, width: int) -> RotaryTables:
        """Makes the tables of a reference.

        Args:
            num_frames: latent frames of all references together, after patching.
            height: rows of tokens.
            width: columns of tokens.

        Raises:
            ModelError: where the reference is longer than the table.
        """
        if max(num_frames + 1, height, width) > self.max_seq_len:
            raise ModelError(
                f"the reference has {num_frames}x{height}x{width} tokens (frames x rows x columns), but this model's "
                f"position table ends at {self.max_seq_len - 1}; use fewer or shorter references"
            )
        parts = [self.t_dim, self.h_dim, self.w_dim]
        time_cos, row_cos, column_cos = self.freqs_cos.split(parts, dim=1)
        time_sin, row_sin, column_sin = self.freqs_sin.split(parts, dim=1)

        def spread(time: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
            axes = (time.view(num_frames, 1, 1, -1), rows.view(1, height, 1, -1), columns.view(1, 1, width, -1))
            grid = [axis.expand(num_frames, height, width, -1) for axis in axes]
            return torch.cat(grid, dim=-1).reshape(1, num_frames * height * width, 1, -1)

        past_cos = time_cos[1 : num_frames + 1].flip(0)
        past_sin = -time_sin[1 : num_frames + 1].flip(0)
        return RotaryTables(
            cos=spread(past_cos, row_cos[:height], column_cos[:width]),
            sin=spread(past_sin, row_sin[:height], column_sin[:width]),
        )


def rotate(features: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates neighbouring pairs of channels of (batch, token, head, head_dim); the result has the same dtype."""
    even, odd = features.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(features)
