"""What the stages that train on cached latents share: the source of latents, captions as tokens, the model's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from sememe.backbones.first_frame import mark_first_frame
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


class CaptionTokens:
    """Tokenises captions once each and embeds them with a text encoder, with gradient if it is trained."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._length = default_sequence_length(tokenizer)
        self._known: dict[str, tuple[list[int], list[int]]] = {}

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, each (caption, token)."""
        rows = []
        for caption in captions:
            if caption not in self._known:
                found = self._tokenizer(
                    clean_prompt(caption), padding="max_length", max_length=self._length, truncation=True
                )
                self._known[caption] = (found.input_ids, found.attention_mask)
            rows.append(self._known[caption])
        return torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])


def embed_tokens(text_encoder: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Text embeddings (caption, token, text_dim), zero behind each caption's end, as `backbones.text` makes them."""
    embeds = text_encoder(ids, mask).last_hidden_state
    return embeds * mask.unsqueeze(-1).to(embeds.dtype)


def model_input(latents: Tensor, first_frames: Tensor, num_mask_channels: int) -> Tensor:
    """(latents, mask, condition) along the channels, as Wan's image-to-video transformer takes them."""
    return torch.cat([latents, mark_first_frame(first_frames, num_mask_channels)], dim=1)


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """A NumPy generator that is a function of the state of a CPU generator."""
    return np.random.Generator(np.random.PCG64(int(torch.randint(1 << 62, (1,), generator=generator))))
