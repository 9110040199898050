"""The vision tower of Qwen2.5-VL: the built-in one, and its computation for many slices at once."""

from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)

from sememe.semanticgen.stage_settings import TowerNetwork


def make_built_in_tower(network: TowerNetwork) -> Qwen2_5_VisionTransformerPretrainedModel:
    """Make the tower of the built-in encoder with random weights; its attention is over whole slices."""
    config = Qwen2_5_VLVisionConfig(
        depth=network.depth,
        hidden_size=network.hidden_size,
        intermediate_size=network.intermediate_size,
        num_heads=network.num_heads,
        patch_size=network.patch_size,
        spatial_merge_size=2,
        temporal_patch_size=2,
        out_hidden_size=network.feature_dim,
        fullatt_block_indexes=list(range(network.depth)),
    )
    return Qwen2_5_VisionTransformerPretrainedModel(config)


def use_all_slices_at_once(tower: Qwen2_5_VisionTransformerPretrainedModel) -> None:
    """Let a tower compute slices of one size together; the results are the same but for rounding.

    transformers computes the attention of one slice after another, and embeds patches by a convolution of as many
    places: neither keeps a GPU busy.
    """
    # In the blocks that are named here attention is over whole slices, in others over parts of different sizes.
    for layer in tower.config.fullatt_block_indexes:
        tower.blocks[layer].attn.__class__ = _SliceAttention
    tower.patch_embed.__class__ = _LinearPatchEmbed


class _SliceAttention(Qwen2_5_VLVisionAttention):
    """Attention within slices of one size, all at once; that of transformers takes one after another."""

    def forward(
        self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        num_slices = len(cu_seqlens) - 1
        # (token, 3 * dim) -> three of (token, head, head_dim)
        queries, keys, values = self.qkv(hidden_states).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        queries, keys = apply_rotary_pos_emb_vision(queries, keys, *position_embeddings)
        # (slice * patch, head, head_dim) -> (slice, head, patch, head_dim)
        split = [part.unflatten(0, (num_slices, -1)).transpose(1, 2) for part in (queries, keys, values)]
        found = functional.scaled_dot_product_attention(*split)
        return self.proj(found.transpose(1, 2).flatten(2).flatten(0, 1))


class _LinearPatchEmbed(Qwen2_5_VisionPatchEmbed):
    """The embedding of patches as the matrix product that it is, which is faster than a convolution on a GPU."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = self.proj.weight
        return functional.linear(hidden_states.to(weight.dtype), weight.flatten(1), self.proj.bias)
