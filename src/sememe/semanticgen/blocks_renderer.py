"""Wan's block over the tokens of a layout: two kinds of tokens, attention in windows, a text for each segment."""

from typing import NamedTuple

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from jaxtyping import Bool, Float
from torch import Tensor

from sememe.semanticgen.shapes import RotaryTable, TextTokens, Tokens
from sememe.semanticgen.windows import WindowRun

Modulation = Float[Tensor, "time_batch 6 dim"] | Float[Tensor, "time_batch kind 6 dim"]
"""Embedded timestep as six shifts, scales and gates: one per sample, or one per kind of token."""


class BlockLayout(NamedTuple):
    """What a block needs to know of its tokens.

    Attributes:
        is_semantic: Which tokens have the modulation's second kind; None where there is one kind.
        runs: Windows.
        rotary: Cosines and sines of the tokens of each run.
        text_lengths: Number of consecutive tokens that read each text.
    """

    is_semantic: Bool[Tensor, "token 1"] | None
    runs: tuple[WindowRun, ...]
    rotary: tuple[tuple[RotaryTable, RotaryTable], ...]
    text_lengths: tuple[int, ...]


class SemanticGenBlock(WanTransformerBlock):
    """Wan's block; without a layout it is the stock block, bit for bit."""

    def forward(
        self,
        hidden_states: Tokens,
        encoder_hidden_states: TextTokens | tuple[TextTokens, ...],
        temb: Modulation,
        rotary_emb: tuple[RotaryTable, RotaryTable] | None = None,
        layout: BlockLayout | None = None,
    ) -> Tokens:
        """Run the block.

        Args:
            hidden_states: Tokens, in the order of the layout.
            encoder_hidden_states: A text, or, with a layout, one for each entry of its `text_lengths`.
            temb: Modulation: per sample, or, with a layout, per kind.
            rotary_emb: Rotations without a layout.
            layout: Windows, kinds and texts of tokens; None for the stock block.
        """
        if layout is None:
            return super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb)
        assert isinstance(encoder_hidden_states, tuple)
        # The table, added to the modulation (batch, kind, 6, dim).
        rows = self.scale_shift_table.unsqueeze(0) + temb.float()
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = rows.unbind(2)

        normed = self.norm1(hidden_states.float()) * (1 + _spread(scale, layout)) + _spread(shift, layout)
        attention = self._attend(normed.type_as(hidden_states), layout)
        hidden_states = (hidden_states.float() + attention * _spread(gate, layout)).type_as(hidden_states)

        queries = self.norm2(hidden_states.float()).type_as(hidden_states)
        parts = zip(queries.split(layout.text_lengths, dim=1), encoder_hidden_states, strict=True)
        heard = [self.attn2(part, text, None, None) for part, text in parts if part.shape[1]]
        hidden_states = hidden_states + torch.cat(heard, dim=1)

        normed = self.norm3(hidden_states.float()) * (1 + _spread(ffn_scale, layout)) + _spread(ffn_shift, layout)
        change = self.ffn(normed.type_as(hidden_states)).float()
        return (hidden_states.float() + change * _spread(ffn_gate, layout)).type_as(hidden_states)

    def _attend(self, tokens: Tokens, layout: BlockLayout) -> Tokens:
        runs = zip(layout.runs, layout.rotary, strict=True)
        return torch.cat([run.join(self.attn1(run.split(tokens), None, None, rotary)) for run, rotary in runs], dim=1)


def _spread(row: Float[Tensor, "time_batch kind dim"], layout: BlockLayout) -> Float[Tensor, "time_batch _ dim"]:
    """Give each token the entry of its kind; a single kind broadcasts."""
    # Not by an index, whose gradient adds up one token after another on a GPU.
    return row if layout.is_semantic is None else torch.where(layout.is_semantic, row[:, 1:], row[:, :1])


# diffusers' caching and compilation look blocks up by their class; a subclass is unknown until it is registered.
TransformerBlockRegistry.register(
    SemanticGenBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)
