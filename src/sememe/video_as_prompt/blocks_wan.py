"""Add an expert to Wan's block: a second set of weights for the reference's tokens.

Video-As-Prompt (arXiv 2510.20888, section 3.2) keeps the video transformer frozen and gives some of its blocks an
expert. Target and reference have their own weights everywhere and meet in one self-attention only.

The parts of an expert (before, during and after that attention) are modules with a forward of their own, and each
parameter belongs to the part that uses it, so hooks on `forward` can gather, move or cast weights. Blocks keep no state
between calls.
"""

from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import (
    WanAttention,
    WanAttnProcessor,
    WanTransformerBlock,
    _get_qkv_projections,
)
from jaxtyping import Float
from torch import Tensor, nn

from sememe.backbones.cross_attention import TextAttnProcessor, TextKeys
from sememe.compute.context_parallel import attend
from sememe.video_as_prompt.reference_attention import (
    ExpertResult,
    IsolatedAttention,
    ReferenceAttention,
    ReferenceStream,
    attend_with_reference,
)
from sememe.video_as_prompt.rotary import RotaryTables, rotate
from sememe.video_as_prompt.shapes import RotaryTable, TextTokens, Tokens

Shift = Float[Tensor, "batch token_or_1 dim"]
"""Shift, scale or gate; one entry serves all tokens where the timestep does not differ between them."""

ModulationEmbeds = Float[Tensor, "time_batch 6 dim"] | Float[Tensor, "time_batch time_token 6 dim"]
"""Embedded timestep as six shifts, scales and gates: per target, or per token."""


class Modulation(NamedTuple):
    """Shift, scale and gate of the self-attention and of the feed-forward."""

    shift: Shift
    scale: Shift
    gate: Shift
    ffn_shift: Shift
    ffn_scale: Shift
    ffn_gate: Shift


def make_modulation(table: Float[Tensor, "1 6 dim"], temb: ModulationEmbeds) -> Modulation:
    """Add a block's table to the embedded timestep."""
    if temb.ndim == 4:
        # (1, 1, 6, dim) + (batch, token, 6, dim) -> six of (batch, token, dim)
        return Modulation(*(table.unsqueeze(0) + temb.float()).unbind(dim=2))
    # (1, 6, dim) + (batch, 6, dim) -> six of (batch, 1, dim)
    return Modulation(*(table + temb.float()).chunk(6, dim=1))


def finish_block(
    part: "WanVideoAsPromptBlock | ExpertOutput",
    hidden_states: Tokens,
    attention: Tokens,
    texts: tuple[Any, ...],
    lengths: tuple[int, ...],
    mod: Modulation,
) -> Tokens:
    """Apply gate, cross-attention and feed-forward to one stream, with the modules of a block or an expert.

    Args:
        part: Module that holds `norm2`, `attn2`, `norm3` and `ffn`.
        hidden_states: Tokens before the block.
        attention: Projected result of the self-attention.
        texts: One text, or one caption per reference, as tokens or as cached keys and values.
        lengths: Number of tokens that read each text; unused for one text.
        mod: Modulation of the stream.
    """
    hidden_states = (hidden_states.float() + attention * mod.gate).type_as(hidden_states)

    queries = part.norm2(hidden_states.float()).type_as(hidden_states)
    if len(texts) == 1:
        read = part.attn2(queries, texts[0], None, None)
    else:
        pieces = queries.split(list(lengths), dim=1)
        read = torch.cat([part.attn2(piece, text, None, None) for piece, text in zip(pieces, texts, strict=True)], 1)
    hidden_states = hidden_states + read

    normed = (part.norm3(hidden_states.float()) * (1 + mod.ffn_scale) + mod.ffn_shift).type_as(hidden_states)
    return (hidden_states.float() + part.ffn(normed).float() * mod.ffn_gate).type_as(hidden_states)


class JointAttnProcessor(WanAttnProcessor):
    """Wan's self-attention of the target, alone or over the tokens of target and reference.

    Alone and on one rank it is the stock one, bit for bit.
    """

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tokens,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[RotaryTable, RotaryTable] | None = None,
        reference: ReferenceAttention | None = None,
    ) -> Float[Tensor, "batch joined_token dim"]:
        """Attend; if the reference has queries, its result before the output projection follows the target's."""
        if reference is None and self._parallel_config is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)

        assert rotary_emb is not None
        # (batch, token, dim) -> (batch, token, head, head_dim)
        query, key, value = _get_qkv_projections(attn, hidden_states, None)
        query = rotate(attn.norm_q(query).unflatten(2, (attn.heads, -1)), *rotary_emb)
        key = rotate(attn.norm_k(key).unflatten(2, (attn.heads, -1)), *rotary_emb)
        value = value.unflatten(2, (attn.heads, -1))

        num_target_tokens = query.shape[1]
        if reference is None:
            heads = attend(self, query, key, value, attention_mask).flatten(2, 3).type_as(query)
        else:
            heads = attend_with_reference(self, query, key, value, reference, attention_mask)
        target = attn.to_out[1](attn.to_out[0](heads[:, :num_target_tokens]))
        if reference is None or reference.query is None:
            return target
        return torch.cat([target, heads[:, num_target_tokens:].type_as(target)], dim=1)


class ExpertModulation(nn.Module):
    """The expert's table of shifts, scales and gates."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(self, temb: ModulationEmbeds) -> Modulation:
        return make_modulation(self.scale_shift_table, temb)


class ExpertProjection(nn.Module):
    """The expert before the attention: norm, modulation, queries, keys and values, their norms, rotation."""

    def __init__(self, config: FrozenDict) -> None:
        super().__init__()
        self.num_heads, eps = config.num_attention_heads, config.eps
        dim = self.num_heads * config.attention_head_dim
        self.norm1 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.norm_q = nn.RMSNorm(dim, eps=eps)
        self.norm_k = nn.RMSNorm(dim, eps=eps)

    def forward(
        self, hidden_states: Tokens, mod: Modulation, rotary: RotaryTables, *, needs_query: bool
    ) -> ReferenceAttention:
        normed = (self.norm1(hidden_states.float()) * (1 + mod.scale) + mod.shift).type_as(hidden_states)
        split = (self.num_heads, -1)  # (batch, token, dim) -> (batch, token, head, head_dim)
        value = self.to_v(normed).unflatten(2, split)
        # Keys may be cached for a whole generation, so store them in the dtype in which attention reads them.
        key = rotate(self.norm_k(self.to_k(normed)).unflatten(2, split), *rotary).type_as(value)
        if not needs_query:
            return ReferenceAttention(None, key, value)
        query = rotate(self.norm_q(self.to_q(normed)).unflatten(2, split), *rotary).type_as(value)
        return ReferenceAttention(query, key, value)


class ExpertOutput(nn.Module):
    """The expert after the attention: output projection, gate, cross-attention, feed-forward."""

    def __init__(self, config: FrozenDict) -> None:
        super().__init__()
        dim, eps = config.num_attention_heads * config.attention_head_dim, config.eps
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(0.0)])
        self.norm2 = FP32LayerNorm(dim, eps, elementwise_affine=True) if config.cross_attn_norm else nn.Identity()
        self.attn2 = WanAttention(
            dim=dim,
            heads=config.num_attention_heads,
            dim_head=config.attention_head_dim,
            eps=eps,
            added_kv_proj_dim=config.added_kv_proj_dim,
            cross_attention_dim_head=config.attention_head_dim,
            processor=TextAttnProcessor(),
        )
        self.norm3 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = FeedForward(dim, inner_dim=config.ffn_dim, activation_fn="gelu-approximate")

    def forward(
        self, hidden_states: Tokens, heads: Tokens, mod: Modulation, texts: tuple[Any, ...], lengths: tuple[int, ...]
    ) -> Tokens:
        attention = self.to_out[1](self.to_out[0](heads))
        return finish_block(self, hidden_states, attention, texts, lengths, mod)


class WanExpert(nn.Module):
    """One block's weights for the reference, in four parts; `forward` runs the reference alone (one-way)."""

    def __init__(self, config: FrozenDict) -> None:
        super().__init__()
        self.modulation = ExpertModulation(config.num_attention_heads * config.attention_head_dim)
        self.projection = ExpertProjection(config)
        self.attention = IsolatedAttention()
        self.output = ExpertOutput(config)

    def forward(self, hidden_states: Tokens, stream: ReferenceStream, *, needs_output: bool) -> ExpertResult:
        assert stream.temb is not None
        assert stream.rotary is not None
        mod = self.modulation(stream.temb)
        attended = self.projection(hidden_states, mod, stream.rotary, needs_query=needs_output)
        if needs_output:
            heads = self.attention(attended)
            hidden_states = self.output(hidden_states, heads, mod, stream.texts, stream.lengths)
        return ExpertResult((hidden_states,), attended.key, attended.value)


class WanVideoAsPromptBlock(WanTransformerBlock):
    """Wan's block with an expert. Without a reference it is the stock block, bit for bit."""

    def __init__(self, config: FrozenDict, *, is_last_expert: bool = False) -> None:
        super().__init__(
            config.num_attention_heads * config.attention_head_dim,
            config.ffn_dim,
            config.num_attention_heads,
            config.qk_norm or "",
            config.cross_attn_norm,
            config.eps,
            config.added_kv_proj_dim,
        )
        self.expert = WanExpert(config)
        # No later block reads the reference, so the last expert computes only its keys and values.
        self.needs_reference_output = not is_last_expert

    def forward(
        self,
        hidden_states: Tokens,
        encoder_hidden_states: TextTokens | TextKeys | None,
        temb: ModulationEmbeds | None,
        rotary_emb: tuple[RotaryTable, RotaryTable] | None,
        reference: ReferenceAttention | ReferenceStream | None = None,
    ) -> Tokens | ExpertResult:
        """Run the block in one of four ways, chosen by `reference`.

        - None: the stock block on the target's tokens.
        - `ReferenceAttention`: target tokens in and out; they also read the given (cached) keys and values.
        - `ReferenceStream` with a `temb`: target and reference tokens joined on the token axis, in and out; both
          read both (two-way attention).
        - `ReferenceStream` without `temb`: reference tokens only, which read only each other; `ExpertResult` out.
        """
        if reference is None:
            return super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb)
        if isinstance(reference, ReferenceStream) and temb is None:
            needs_output = (self.needs_reference_output or reference.finishes) and not reference.keys_only
            return self.expert(hidden_states, reference, needs_output=needs_output)

        assert temb is not None
        mod = make_modulation(self.scale_shift_table, temb)
        if isinstance(reference, ReferenceAttention):
            normed = (self.norm1(hidden_states.float()) * (1 + mod.scale) + mod.shift).type_as(hidden_states)
            attention = self.attn1(normed, None, None, rotary_emb, reference=reference)
            return finish_block(self, hidden_states, attention, (encoder_hidden_states,), (), mod)

        assert reference.temb is not None
        assert reference.rotary is not None
        num_reference_tokens = sum(reference.lengths)
        # (batch, target token + reference token, dim) -> one part each
        target, source = hidden_states.split(
            [hidden_states.shape[1] - num_reference_tokens, num_reference_tokens], dim=1
        )
        source_mod = self.expert.modulation(reference.temb)
        attended = self.expert.projection(source, source_mod, reference.rotary, needs_query=self.needs_reference_output)
        attended = attended._replace(strength=reference.strength)
        normed = (self.norm1(target.float()) * (1 + mod.scale) + mod.shift).type_as(target)
        attention = self.attn1(normed, None, None, rotary_emb, reference=attended)
        num_target_tokens = target.shape[1]
        target = finish_block(self, target, attention[:, :num_target_tokens], (encoder_hidden_states,), (), mod)
        if self.needs_reference_output:
            heads = attention[:, num_target_tokens:]
            source = self.expert.output(source, heads, source_mod, reference.texts, reference.lengths)
        return torch.cat([target, source], dim=1)


# diffusers' caching and compilation look blocks up by their class; a subclass is unknown until it is registered.
TransformerBlockRegistry.register(
    WanVideoAsPromptBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)
