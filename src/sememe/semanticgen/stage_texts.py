"""Captions of the clips of a batch, for clips as a whole or for each of their slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sememe.data.array_cache import ArrayCache
from sememe.data.caption_policy import CaptionPolicy
from sememe.data.pairing import CaptionKind, draw_captions, pick_captions
from sememe.semanticgen.clocks import SliceClock
from sememe.semanticgen.shapes import TextEmbeds
from sememe.semanticgen.windows import find_segments
from sememe.training.text_source import TextSource


@dataclass(frozen=True, eq=False)
class BatchTexts:
    """Captions of a batch.

    Attributes:
        picked: Captions, each once, in the form of a `TextSource`.
        places: Which of them each clip reads in each segment: one segment for a whole clip, or each slice.
    """

    picked: Tensor
    places: Int[Tensor, "segment clip"]

    def embed(self, source: TextSource) -> tuple[TextEmbeds, ...]:
        """Return the texts of each segment, (clip, token, text_dim)."""
        embeds = source.embed(self.picked)
        return tuple(embeds.index_select(0, places) for places in self.places)


class ClipTexts:
    """Draws captions of the clips of a cache.

    Args:
        cache: Cache with captions, and with segments where it is known what happens when.
        source: Text encoder, or embedded texts.
        policy: Captions that are dropped or say what happens.
        segment_share: Share of batches in which each slice reads what happens in it, and not all that happens. Clips
            without segments read the same in all slices.
        clock: How plans divide time.
    """

    def __init__(
        self, cache: ArrayCache, source: TextSource, policy: CaptionPolicy, segment_share: float, clock: SliceClock
    ) -> None:
        self._cache, self._source, self._policy, self._clock = cache, source, policy, clock
        self._segment_share = segment_share

    def draw(
        self, picked: Sequence[int] | np.ndarray, num_slices: int, rng: np.random.Generator, device: torch.device
    ) -> BatchTexts:
        """Draw the captions of some clips, whose plans have so many slices."""
        kinds = draw_captions(self._policy, rng, num_targets=len(picked)).targets
        neutral, full = ([texts[i] for i in picked] for texts in (self._cache.captions, self._cache.full_captions))
        whole = pick_captions(kinds, neutral, full)
        rows = [whole]
        if rng.random() < self._segment_share:
            divided = [
                self._divide(int(index), num_slices) if kind == CaptionKind.FULL else ()
                for index, kind in zip(picked, kinds, strict=True)
            ]
            pairs = list(zip(divided, whole, strict=True))
            rows = [tuple(parts[place] if parts else text for parts, text in pairs) for place in range(num_slices)]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(text for row in rows for text in row))}
        places = torch.tensor([[numbers[text] for text in row] for row in rows])
        return BatchTexts(self._source.pick(tuple(numbers)).to(device), places.to(device))

    def _divide(self, index: int, num_slices: int) -> tuple[str, ...]:
        """Return the text of the segment that the centre of each slice lies in; none of a clip without segments."""
        item = self._cache.item(index)
        places = find_segments(item.segment_ends[:-1], self._clock.times(num_slices))
        return tuple(item.segment_captions[place] for place in places) if item.segment_captions else ()
