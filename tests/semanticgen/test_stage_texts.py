"""Captions of batches, for whole clips and for slices."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sememe.data.caption_policy import CaptionPolicy
from sememe.semanticgen.clocks import SliceClock
from sememe.semanticgen.stage_texts import BatchTexts, ClipTexts
from training.golden_losses import MadeUpArrays

CLOCK = SliceClock(fps=4.0)  # slices of half a second
CPU = torch.device("cpu")


class Spelling:
    """A text source whose embeddings are the captions' own numbers, and which keeps the captions."""

    def __init__(self) -> None:
        self.captions: list[str] = []

    def pick(self, captions: Sequence[str]) -> Int[Tensor, " caption"]:
        self.captions = list(captions)
        return torch.arange(len(captions))

    def embed(self, picked: Int[Tensor, " caption"]) -> Float[Tensor, "caption 1 1"]:
        return picked.float().view(-1, 1, 1)


def draw(picked: list[int], *, share: float, full: float = 1.0, drop: float = 0.0) -> list[list[str]]:
    """The captions of the clips of a batch, in each segment."""
    source = Spelling()
    policy = CaptionPolicy(drop_target_caption=drop, full_share=full)
    texts = ClipTexts(MadeUpArrays({}), source, policy, share, CLOCK)
    drawn = texts.draw(picked, 4, np.random.default_rng(0), CPU)
    assert isinstance(drawn, BatchTexts)
    assert len(set(source.captions)) == len(source.captions)
    return [[source.captions[int(number)] for number in row.flatten()] for row in drawn.embed(source)]


def test_a_whole_clip_has_one_caption() -> None:
    full = MadeUpArrays({}).full_captions
    assert draw([5, 8, 5], share=0.0) == [[full[5], full[8], full[5]]]


def test_a_slice_reads_the_segment_that_its_centre_lies_in() -> None:
    arrays = MadeUpArrays({})
    nothing, trick = arrays.item(5).segment_captions
    # Its first segment ends at 0.8 seconds; slices stand at 0.25, 0.75, 1.25 and 1.75. Clip 8 has no segments.
    assert [row[0] for row in draw([5, 8], share=1.0)] == [nothing, nothing, trick, trick]
    assert [row[1] for row in draw([5, 8], share=1.0)] == [arrays.full_captions[8]] * 4


@pytest.mark.parametrize(("full", "drop", "expected"), [(0.0, 0.0, MadeUpArrays({}).captions[5]), (1.0, 1.0, "")])
def test_captions_that_do_not_say_what_happens_are_those_of_the_whole(full: float, drop: float, expected: str) -> None:
    assert draw([5], share=1.0, full=full, drop=drop) == [[expected]] * 4


def test_a_share_of_the_batches_is_divided() -> None:
    texts = ClipTexts(MadeUpArrays({}), Spelling(), CaptionPolicy(drop_target_caption=0.0), 0.25, CLOCK)
    rng = np.random.default_rng(0)
    divided = [len(texts.draw([5], 4, rng, CPU).places) == 4 for _ in range(400)]
    assert 70 < sum(divided) < 130
