"""Keys and values of texts, which are the same at every step: projected once, read at each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor, _get_added_kv_projections
from jaxtyping import Float

from sememe.backbones.text import MAX_SEQUENCE_LENGTH

Tokens = Float[torch.Tensor, "batch token dim"]
TextTokens = Float[torch.Tensor, "batch text_token text_dim"]
TokenHeads = Float[torch.Tensor, "batch token head head_dim"]
PictureHeads = Float[torch.Tensor, "batch picture_token head head_dim"]


class TextKeys(NamedTuple):
    """Keys and values of one block's cross-attention: of texts and of pictures."""

    key: TokenHeads
    value: TokenHeads
    image_key: PictureHeads | None = None
    image_value: PictureHeads | None = None

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "TextKeys":
        """Apply `change` to every tensor."""
        pictures = (None if tensor is None else change(tensor) for tensor in (self.image_key, self.image_value))
        return TextKeys(change(self.key), change(self.value), *pictures)


class KeptText(NamedTuple):
    """A batch of texts as all blocks read it.

    Attributes:
        blocks: Keys and values of the text, per block.
        stub: Zeros (batch, 1, text_dim) in the precision of the embeddings, which a forward is given in their place.
    """

    blocks: tuple[TextKeys, ...]
    stub: torch.Tensor


class TextAttnProcessor(WanAttnProcessor):
    """Wan's cross-attention, which also takes `TextKeys` in place of embeddings."""

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tokens,
        encoder_hidden_states: TextTokens | TextKeys | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tokens:
        if not isinstance(encoder_hidden_states, TextKeys):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        kept = encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        read = self._attend(query, kept.key, kept.value)
        if kept.image_key is not None:
            assert kept.image_value is not None
            read = read + self._attend(query, kept.image_key, kept.image_value)
        return attn.to_out[1](attn.to_out[0](read))

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        # The text is whole on every rank, so this attention is never split over ranks.
        heads = dispatch_attention_fn(query, key, value, backend=self._attention_backend, parallel_config=None)
        return heads.flatten(2, 3).type_as(query)


def project_text(attn: WanAttention, text: Float[torch.Tensor, "batch token dim"]) -> TextKeys:
    """Return keys and values of one block's cross-attention.

    Args:
        attn: The attention module of the block.
        text: Embedded text, with the embedded pictures in front if the block has weights of its own for them.
    """
    split = (attn.heads, -1)
    # As in the stock attention: tokens before a text's fixed number of them are those of pictures.
    num_image_tokens = 0 if attn.add_k_proj is None else text.shape[1] - MAX_SEQUENCE_LENGTH
    pictures, text = text[:, :num_image_tokens], text[:, num_image_tokens:]
    if getattr(attn, "fused_projections", False):
        key, value = attn.to_kv(text).chunk(2, dim=-1)
    else:
        key, value = attn.to_k(text), attn.to_v(text)
    keys = TextKeys(attn.norm_k(key).unflatten(2, split), value.unflatten(2, split))
    if attn.add_k_proj is None:
        return keys
    image_key, image_value = _get_added_kv_projections(attn, pictures)
    return keys._replace(
        image_key=attn.norm_added_k(image_key).unflatten(2, split), image_value=image_value.unflatten(2, split)
    )
