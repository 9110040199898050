"""Attend to a reference, and within a reference, in the same way on every backbone."""

import math
from typing import Any, ClassVar, NamedTuple

import torch
from diffusers.models.attention import AttentionModuleMixin
from jaxtyping import Float
from torch import Tensor, nn

from sememe.compute.context_parallel import attend
from sememe.video_as_prompt.rotary import RotaryTables
from sememe.video_as_prompt.shapes import Heads, ReferenceHeads, Tokens, TokenStreams


class ReferenceAttention(NamedTuple):
    """Rotated queries, keys and values of a reference in one attention.

    Attributes:
        query: None to compute the target's result only.
        key: Keys that the target reads.
        value: Values that the target reads.
        strength: Factor in (0, 1] on the weight of each of the reference's tokens in the target's softmax, before it
            is normalised; models are trained with 1. The result for the reference does not depend on it.
    """

    query: ReferenceHeads | None
    key: ReferenceHeads
    value: ReferenceHeads
    strength: float = 1.0


class ReferenceStream(NamedTuple):
    """Inputs of a block that belong to the reference's tokens.

    Attributes:
        texts: Caption tokens of each reference, or their cached keys and values in the block. On CogVideoX, where
            captions are tokens of the blocks, those before the first block.
        lengths: Number of video tokens of each reference.
        temb: Modulation of the reference's tokens; None if it follows the target's timestep.
        rotary: Positions; None on a backbone without rotary embedding.
        strength: As in `ReferenceAttention`.
        keys_only: Compute the keys and values of the reference and leave its tokens unchanged.
        finishes: Compute its tokens after the last expert too, which no target reads.
    """

    texts: tuple[Any, ...]
    lengths: tuple[int, ...]
    temb: torch.Tensor | None
    rotary: RotaryTables | None
    strength: float = 1.0
    keys_only: bool = False
    finishes: bool = False


class ExpertResult(NamedTuple):
    """Tokens of a reference after a block that read the reference only, and their keys and values in that block.

    Attributes:
        tokens: Video tokens; on CogVideoX also caption tokens.
        key: Rotated keys.
        value: Values.
    """

    tokens: TokenStreams
    key: Heads
    value: Heads


def attend_with_reference(
    processor: Any,
    query: Heads,
    key: Heads,
    value: Heads,
    reference: ReferenceAttention,
    mask: Tensor | None = None,
) -> Float[Tensor, "batch joined_token joined_dim"]:
    """Attend from a target to its own tokens followed by a reference's.

    Args:
        processor: Attention processor, as in `attend`.
        query: Rotated queries of the target.
        key: Rotated keys of the target.
        value: Values of the target.
        reference: The reference; if it has queries, its own result is computed too.
        mask: Mask in the form of the attention backend; must be None unless the strength is 1.

    Returns:
        Heads merged into one axis, for the target's tokens and then the reference's if it has queries.
    """
    own = None if reference.query is None else reference.query.type_as(query)
    num_target_tokens = key.shape[1]
    # (batch, target token + reference token, head, head_dim)
    key = _join(key, reference.key.type_as(key))
    value = _join(value, reference.value.type_as(value))
    if reference.strength == 1.0:
        joined = query if own is None else _join(query, own)
        heads = attend(processor, joined, key, value, mask)
        return heads.flatten(2, 3).type_as(query)

    assert mask is None
    assert reference.strength > 0.0
    # A factor on a weight is a summand on its logit. It holds for the target's queries only, so the reference's
    # queries attend separately. The bias broadcasts as (batch, head, query, key).
    bias = key.new_zeros(1, 1, 1, key.shape[1])
    bias[..., num_target_tokens:] = math.log(reference.strength)
    heads = attend(processor, query, key, value, bias)
    if own is not None:
        heads = torch.cat([heads, attend(processor, own, key, value)], dim=1)
    return heads.flatten(2, 3).type_as(query)


def _join(target: Heads, reference: ReferenceHeads) -> Float[Tensor, "batch joined_token head head_dim"]:
    """Concatenate on the token axis, with the tokens of one head contiguous in memory.

    Concatenating copies anyway, and in this layout the CPU's bfloat16 attention was measured to take a tenth less time.
    """
    # (batch, token, head, head_dim) -> (batch, head, token, head_dim), and back after joining
    return torch.cat([target.transpose(1, 2), reference.transpose(1, 2)], dim=2).transpose(1, 2)


class IsolatedAttnProcessor:
    """Self-attention of the reference."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn: nn.Module, reference: ReferenceAttention) -> Tokens:
        """Attend within the reference, with the heads merged into one axis."""
        assert reference.query is not None
        heads = attend(self, reference.query, reference.key, reference.value)
        return heads.flatten(2, 3).type_as(reference.value)


class IsolatedAttention(nn.Module, AttentionModuleMixin):
    """Module without weights that holds the processor of the reference's self-attention."""

    _default_processor_cls = IsolatedAttnProcessor
    _available_processors: ClassVar[list[type]] = [IsolatedAttnProcessor]
    _supports_qkv_fusion = False

    def __init__(self) -> None:
        super().__init__()
        self.processor = IsolatedAttnProcessor()

    def forward(self, reference: ReferenceAttention) -> Tokens:
        processor: Any = self.processor
        return processor(self, reference)
