"""What a block is told of a reference, and the attention of a reference to itself; the same on every backbone."""

import math
from typing import Any, ClassVar, NamedTuple

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

from sememe.video_as_prompt.rotary import RotaryTables


class ReferenceAttention(NamedTuple):
    """What a reference brings to an attention, each (batch, token, head, head_dim), rotated.

    Without a query the target reads the reference, and the reference's own result is not asked for. `strength`, above
    0 and at most 1, is a factor on the weight of each of the reference's tokens in the target's softmax, before it is
    normalised; 1 is what models are trained for. How the reference reads the target is not affected.
    """

    query: torch.Tensor | None
    key: torch.Tensor
    value: torch.Tensor
    strength: float = 1.0


class ReferenceStream(NamedTuple):
    """What accompanies the reference's tokens through the blocks.

    `texts` holds one (batch, text token, dim) per reference, or its keys and values in the block, and `lengths` the
    number of tokens of each. `temb` is what modulates them, or None where that follows the target's timestep; `rotary`
    is None on a backbone without it. `strength` is that of `ReferenceAttention`. With `keys_only` a block that runs the
    reference alone computes its keys and values and leaves its tokens as they are.
    """

    texts: tuple[Any, ...]
    lengths: tuple[int, ...]
    temb: torch.Tensor | None
    rotary: RotaryTables | None
    strength: float = 1.0
    keys_only: bool = False


def attend_beside(
    processor: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    reference: ReferenceAttention,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of a target, each (batch, token, head, head_dim), with a reference's tokens behind its own.

    Args:
        processor: says which attention backend is used.
        query: the target's, as are key and value.
        key: rotated, as the query is.
        value: of the keys.
        reference: what it brings; with a query its own heads are computed as well.
        mask: as the attention backend takes it; none with a strength other than 1.

    Returns:
        (batch, token, head * head_dim): the target's tokens, and behind them the reference's if it has a query.
    """
    own = None if reference.query is None else reference.query.type_as(query)
    num_target_tokens = key.shape[1]
    key = _join(key, reference.key.type_as(key))
    value = _join(value, reference.value.type_as(value))
    backend = {"backend": processor._attention_backend, "parallel_config": processor._parallel_config}
    if reference.strength == 1.0:
        joined = query if own is None else _join(query, own)
        heads = dispatch_attention_fn(joined, key, value, attn_mask=mask, **backend)
        return heads.flatten(2, 3).type_as(query)

    assert mask is None
    assert reference.strength > 0.0
    # A factor on a weight is a summand on its logit. Only the target's queries have it, so the streams part here.
    bias = key.new_zeros(1, 1, 1, key.shape[1])
    bias[..., num_target_tokens:] = math.log(reference.strength)
    heads = dispatch_attention_fn(query, key, value, attn_mask=bias, **backend)
    if own is not None:
        heads = torch.cat([heads, dispatch_attention_fn(own, key, value, **backend)], dim=1)
    return heads.flatten(2, 3).type_as(query)


def _join(target: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Tokens of both, each (batch, token, head, head_dim), laid out with a head's tokens side by side in memory.

    Joining copies anyway, and so laid out the CPU's bfloat16 attention reads keys and values in a tenth less time.
    """
    return torch.cat([target.transpose(1, 2), reference.transpose(1, 2)], dim=2).transpose(1, 2)


class IsolatedAttnProcessor:
    """The reference's attention to itself."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn: nn.Module, reference: ReferenceAttention) -> torch.Tensor:
        """Attends; the result is (batch, token, head * head_dim)."""
        assert reference.query is not None
        query, key, value = reference.query, reference.key, reference.value
        heads = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        return heads.flatten(2, 3).type_as(value)


class IsolatedAttention(nn.Module, AttentionModuleMixin):
    """Holds the processor with which a reference attends to itself; it has no weights."""

    _default_processor_cls = IsolatedAttnProcessor
    _available_processors: ClassVar[list[type]] = [IsolatedAttnProcessor]
    _supports_qkv_fusion = False

    def __init__(self) -> None:
        super().__init__()
        self.processor = IsolatedAttnProcessor()

    def forward(self, reference: ReferenceAttention) -> torch.Tensor:
        processor: Any = self.processor
        return processor(self, reference)
