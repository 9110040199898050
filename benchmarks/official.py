"""The official way of computing Video-As-Prompt on Wan, on the weights of this library's transformer: the rival.

Written from what is known of how the released code spends its time, so that the comparison is with all of its habits
and none of anybody's lines. It computes what the two-way forward computes, and differs in how:

- the reference's rotary table is made in every forward, on the CPU, in float64: a complex number for each position and
  pair of channels, over the whole range of positions of all three axes, and is then brought to where it is used;
- queries and keys of both streams are rotated in float64 as complex numbers, in every block;
- patch embeddings, text and image projections and the reference's timestep, all of them the same at every step, are
  computed in each forward, and so are the keys and values of texts and captions in each block;
- queries, keys and values of both streams are joined by copying them, heads before tokens;
- behind the last attention the reference's output is computed although nobody reads it.

The target's rotary table is made once, as there.
"""

from typing import Any

import torch
from einops import rearrange
from torch.nn import functional as F

from sememe.video_as_prompt.blocks_wan import WanExpert
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceInputs

_THETA = 10000.0


class OfficialForward:
    """One forward of target and reference together; one reference of the target's rows and columns."""

    def __init__(self, transformer: WanVideoAsPromptTransformer) -> None:
        self.transformer: Any = transformer
        rope = transformer.rope
        self.widths = (rope.t_dim, rope.h_dim, rope.w_dim)
        self.num_positions = rope.max_seq_len
        self.target_table = _make_table(torch.arange(self.num_positions), self.widths)

    @torch.no_grad()
    def __call__(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        text_embeds: torch.Tensor,
        image_embeds: torch.Tensor | None,
        reference: ReferenceInputs,
    ) -> torch.Tensor:
        """Predicts; the arguments are those of the transformer's own forward, the result (batch, channel, ...)."""
        model = self.transformer
        _, _, frames, height, width = hidden_states.shape
        _, patch_height, patch_width = model.config.patch_size
        rows, columns = height // patch_height, width // patch_width
        tokens = rearrange(model.patch_embedding(hidden_states), "b c t h w -> b (t h w) c")
        temb, modulation, text = _embed(model.condition_embedder, timestep, text_embeds, image_embeds)
        target_rotary = self._make_target_rotary(frames, rows, columns).to(tokens.device)

        embedder, (source_latents,) = model.expert_embedder, reference.latents
        source = rearrange(embedder.patch_embedding(source_latents), "b c t h w -> b (t h w) c")
        source_timestep = torch.full_like(timestep, model.config.reference_timestep)
        source_image = None if reference.image_embeds is None else reference.image_embeds[0]
        _, source_modulation, source_text = _embed(
            embedder.condition_embedder, source_timestep, reference.text_embeds[0], source_image
        )
        source_rotary = self._make_reference_rotary(source_latents.shape[2], rows, columns).to(tokens.device)

        for block in model.blocks:
            if getattr(block, "expert", None) is None:
                tokens = _run_block(block, tokens, modulation, text, target_rotary)
            else:
                tokens, source = _run_both(
                    block, (tokens, source), (modulation, source_modulation), (text, source_text),
                    (target_rotary, source_rotary),
                )  # fmt: skip
        return self._project_out(tokens, temb, (frames, rows, columns))

    def _make_target_rotary(self, frames: int, rows: int, columns: int) -> torch.Tensor:
        time, row, column = self._split(self.target_table)
        return _spread(time[:frames], row[:rows], column[:columns])

    def _make_reference_rotary(self, frames: int, rows: int, columns: int) -> torch.Tensor:
        """Positions -frames..-1 in time. All that could ever be asked for is computed, in every forward."""
        table = _make_table(torch.arange(-frames, self.num_positions), self.widths)
        time, row, column = self._split(table)
        return _spread(time[:frames], row[frames : frames + rows], column[frames : frames + columns])

    def _split(self, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return table.split([width // 2 for width in self.widths], dim=1)

    def _project_out(self, tokens: torch.Tensor, temb: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        model = self.transformer
        shift, scale = (model.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        normed = (model.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        frames, rows, columns = grid
        _, height, width = model.config.patch_size
        return rearrange(
            model.proj_out(normed), "b (t h w) (p q c) -> b c t (h p) (w q)",
            t=frames, h=rows, w=columns, p=height, q=width,
        )  # fmt: skip


def _make_table(positions: torch.Tensor, widths: tuple[int, int, int]) -> torch.Tensor:
    """exp(i * position * frequency) of each pair of channels, complex128, (position, channel pair) of all axes."""
    angles = []
    for width in widths:
        frequencies = _THETA ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles.append(torch.outer(positions.double(), frequencies))
    joined = torch.cat(angles, dim=1)
    return torch.polar(torch.ones_like(joined), joined)


def _spread(time: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Tables (position, channel pair) of three axes as one (1, 1, token, channel pair)."""
    shape = (len(time), len(row), len(column), -1)
    axes = (time[:, None, None], row[None, :, None], column[None, None])
    return torch.cat([axis.expand(shape) for axis in axes], dim=-1).flatten(0, 2)[None, None]


def _embed(
    embedder: Any, timestep: torch.Tensor, text_embeds: torch.Tensor, image_embeds: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    temb, modulation, text, image = embedder(timestep, text_embeds, image_embeds)
    return temb, modulation.unflatten(1, (6, -1)), text if image is None else torch.cat([image, text], dim=1)


def _rotate(heads: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotates (batch, head, token, head_dim)."""
    pairs = torch.view_as_complex(heads.to(torch.float64).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary).flatten(-2).type_as(heads)


def _project(part: Any, normed: torch.Tensor, num_heads: int, rotary: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values (batch, head, token, head_dim), with the layers of an attention or of an expert."""
    query, key, value = part.norm_q(part.to_q(normed)), part.norm_k(part.to_k(normed)), part.to_v(normed)
    query, key, value = (rearrange(entry, "b n (h d) -> b h n d", h=num_heads) for entry in (query, key, value))
    return _rotate(query, rotary), _rotate(key, rotary), value


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    heads = F.scaled_dot_product_attention(query, key, value)
    return rearrange(heads, "b h n d -> b n (h d)").type_as(query)


def _modulate(norm: Any, tokens: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (norm(tokens.float()) * (1 + scale) + shift).type_as(tokens)


def _finish(
    part: Any, tokens: torch.Tensor, attention: torch.Tensor, mod: tuple[torch.Tensor, ...], text: torch.Tensor
) -> torch.Tensor:
    """Gate, cross-attention and feed-forward, with the layers of a block or of an expert's output."""
    _, _, gate, shift, scale, ffn_gate = mod
    tokens = (tokens.float() + attention * gate).type_as(tokens)
    tokens = tokens + part.attn2(part.norm2(tokens.float()).type_as(tokens), text, None, None)
    forwarded = part.ffn(_modulate(part.norm3, tokens, shift, scale))
    return (tokens.float() + forwarded.float() * ffn_gate).type_as(tokens)


def _run_block(
    block: Any, tokens: torch.Tensor, modulation: torch.Tensor, text: torch.Tensor, rotary: torch.Tensor
) -> torch.Tensor:
    mod = (block.scale_shift_table + modulation.float()).chunk(6, dim=1)
    normed = _modulate(block.norm1, tokens, mod[0], mod[1])
    heads = _attend(*_project(block.attn1, normed, block.attn1.heads, rotary))
    return _finish(block, tokens, block.attn1.to_out[0](heads), mod, text)


def _run_both(
    block: Any,
    streams: tuple[torch.Tensor, torch.Tensor],
    modulations: tuple[torch.Tensor, torch.Tensor],
    texts: tuple[torch.Tensor, torch.Tensor],
    rotaries: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Target and reference in one block with an expert."""
    expert: WanExpert = block.expert
    tokens, source = streams
    mod = (block.scale_shift_table + modulations[0].float()).chunk(6, dim=1)
    source_mod = (expert.modulation.scale_shift_table + modulations[1].float()).chunk(6, dim=1)

    num_heads = block.attn1.heads
    own = _project(block.attn1, _modulate(block.norm1, tokens, mod[0], mod[1]), num_heads, rotaries[0])
    # References are handled as a group, which has one member here.
    group = rearrange(source, "b (g n) c -> (b g) n c", g=1)
    normed = _modulate(expert.projection.norm1, group, source_mod[0], source_mod[1])
    other = _project(expert.projection, normed, num_heads, rotaries[1])
    other = tuple(rearrange(entry, "(b g) h n d -> b h (g n) d", g=1) for entry in other)

    joined = (torch.cat([mine, theirs], dim=2) for mine, theirs in zip(own, other, strict=True))
    heads, source_heads = _attend(*joined).split([tokens.shape[1], source.shape[1]], dim=1)
    tokens = _finish(block, tokens, block.attn1.to_out[0](heads), mod, texts[0])
    group = rearrange(expert.output.to_out[0](source_heads), "b (g n) c -> (b g) n c", g=1)
    return tokens, _finish(expert.output, source, group, source_mod, texts[1])
