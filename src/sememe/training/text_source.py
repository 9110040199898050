"""Text embeddings for training: from a text encoder, or from a cache."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sememe.backbones.text import clean_prompt, default_sequence_length
from sememe.data.array_cache import ArrayCache

Picked = Int[Tensor, "caption ..."]
TextEmbeds = Float[Tensor, "caption token text_dim"]


@runtime_checkable
class TextSource(Protocol):
    """Text embeddings of captions, in two steps: what a batch contains, and the embeddings themselves."""

    def pick(self, captions: Sequence[str]) -> Picked:
        """What `embed` needs of captions, on the CPU; may run in another thread."""
        ...

    def embed(self, picked: Picked) -> TextEmbeds:
        """Embeddings (caption, token, text_dim) on the device, from the result of `pick`."""
        ...


class EncodedText:
    """Text embeddings from a text encoder, with gradient if it is trained; captions are tokenised once each.

    Args:
        tokenizer: Tokenizer of the text encoder.
        text_encoder: A `UMT5EncoderModel` or `T5EncoderModel`.
        length: Tokens per caption; None for the tokenizer's own number.
        reads_padding: Whether padding is read like other tokens, as in CogVideoX, or masked, as in Wan.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: nn.Module,
        length: int | None = None,
        *,
        reads_padding: bool = False,
    ) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self._length, self._reads_padding = length or default_sequence_length(tokenizer), reads_padding
        self._known: dict[str, Tensor] = {}

    def pick(self, captions: Sequence[str]) -> Int[Tensor, "caption 2 token"]:
        """Token ids and mask."""
        if new := [caption for caption in dict.fromkeys(captions) if caption not in self._known]:
            texts = new if self._reads_padding else [clean_prompt(caption) for caption in new]
            found = self.tokenizer(texts, padding="max_length", max_length=self._length, truncation=True)
            self._known |= zip(new, torch.tensor([found.input_ids, found.attention_mask]).unbind(1), strict=True)
        return torch.stack([self._known[caption] for caption in captions])

    def embed(self, picked: Int[Tensor, "caption 2 token"]) -> TextEmbeds:
        """Embeddings as `backbones.text` makes them."""
        ids, mask = picked.unbind(1)
        encoder = self.text_encoder.to(picked.device)
        if self._reads_padding:
            return encoder(ids).last_hidden_state
        embeds = encoder(ids, mask).last_hidden_state
        return embeds * mask.unsqueeze(-1).to(embeds.dtype)


class CachedText:
    """Text embeddings from the array "text" of a cache."""

    def __init__(self, cache: ArrayCache) -> None:
        self._cache = cache

    def pick(self, captions: Sequence[str]) -> Int[Tensor, " caption"]:
        """Indices in the array."""
        return self._cache.places("text", captions)

    def embed(self, picked: Int[Tensor, " caption"]) -> TextEmbeds:
        """Embeddings in float32."""
        return self._cache.read("text", picked).to(picked.device).float()
