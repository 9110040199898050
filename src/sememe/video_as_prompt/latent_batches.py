"""What the stages that train on cached latents share: sources of latents and of text embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from sememe.backbones.text import clean_prompt, default_sequence_length


@runtime_checkable
class LatentSource(Protocol):
    """Latents by number; `data.latents.LatentCache` is one."""

    @property
    def conditions(self) -> Sequence[str]:
        """The condition that each item shows."""
        ...

    @property
    def scenes(self) -> Sequence[str]:
        """The scene that each item is filmed in."""
        ...

    @property
    def captions(self) -> Sequence[str]:
        """Who and where, for each item."""
        ...

    @property
    def full_captions(self) -> Sequence[str]:
        """Who, where and what happens, for each item."""
        ...

    def select_clean(self, indices: Tensor) -> Tensor:
        """Clean latents (item, channel, frame, height, width)."""
        ...

    def select_condition(self, indices: Tensor) -> Tensor:
        """Latents of each item's first frame followed by grey, of the same shape."""
        ...


@runtime_checkable
class TextSource(Protocol):
    """Text embeddings of captions, in two steps: what a batch carries of them, and the embeddings themselves."""

    def pick(self, captions: Sequence[str]) -> Tensor:
        """What `embed` needs of captions, (caption, ...) int64 on the CPU; may run in a thread of its own."""
        ...

    def embed(self, picked: Tensor) -> Tensor:
        """Embeddings (caption, token, text_dim) on the device of what `pick` gave."""
        ...


class EncodedText:
    """Text embeddings from a text encoder, with gradient if it is trained; captions are tokenised once each.

    Args:
        tokenizer: of the text encoder.
        text_encoder: a `UMT5EncoderModel` or `T5EncoderModel`.
        length: tokens per caption; None for the tokenizer's own.
        reads_padding: whether padding is read like any other token, as CogVideoX has it, or unseen, as Wan has it.
    """

    def __init__(
        self, tokenizer: Any, text_encoder: nn.Module, length: int | None = None, *, reads_padding: bool = False
    ) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self._length, self._reads_padding = length or default_sequence_length(tokenizer), reads_padding
        self._known: dict[str, Tensor] = {}

    def pick(self, captions: Sequence[str]) -> Tensor:
        """Token ids and mask, (caption, 2, token)."""
        for caption in captions:
            if caption not in self._known:
                text = caption if self._reads_padding else clean_prompt(caption)
                found = self.tokenizer(text, padding="max_length", max_length=self._length, truncation=True)
                self._known[caption] = torch.tensor([found.input_ids, found.attention_mask])
        return torch.stack([self._known[caption] for caption in captions])

    def embed(self, picked: Tensor) -> Tensor:
        """Embeddings (caption, token, text_dim) as `backbones.text` makes them."""
        ids, mask = picked.unbind(1)
        encoder = self.text_encoder.to(picked.device)
        if self._reads_padding:
            return encoder(ids).last_hidden_state
        embeds = encoder(ids, mask).last_hidden_state
        return embeds * mask.unsqueeze(-1).to(embeds.dtype)


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """A NumPy generator that is a function of the state of a CPU generator."""
    return np.random.Generator(np.random.PCG64(int(torch.randint(1 << 62, (1,), generator=generator))))
