"""Contents: mixtures on the arc between two embeddings, and contents over time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sememe.errors import InputError
from sememe.gen1.content import ContentEmbedding, Keyframe, blend_contents, spread_content


def make(*numbers: float) -> ContentEmbedding:
    return ContentEmbedding(torch.tensor([numbers]), torch.tensor(numbers))


@given(share=st.floats(0.0, 1.0))
def test_a_mixture_is_on_the_arc(share: float) -> None:
    mixed = blend_contents(make(2.0, 0.0), make(0.0, 4.0), share)
    length = 2.0 + 2.0 * share
    angle = share * math.pi / 2
    expected = torch.tensor([math.cos(angle) * length, math.sin(angle) * length])
    torch.testing.assert_close(mixed.tokens[0], expected, atol=1e-5, rtol=1e-5)
    assert mixed.image is not None
    torch.testing.assert_close(mixed.image, expected, atol=1e-5, rtol=1e-5)


def test_ends_are_exact_and_what_spans_no_arc_is_mixed_linearly() -> None:
    first, second = make(2.0, 1.0), make(-1.0, 3.0)
    assert torch.equal(blend_contents(first, second, 0.0).tokens, first.tokens)
    assert torch.equal(blend_contents(first, second, 1.0).tokens, second.tokens)
    assert torch.equal(blend_contents(make(0.0, 0.0), second, 0.5).tokens, second.tokens / 2)
    assert torch.equal(blend_contents(make(1.0, 0.0), make(-1.0, 0.0), 0.5).tokens, torch.zeros(1, 2))
    torch.testing.assert_close(blend_contents(first, first, 0.3).tokens, first.tokens)
    with pytest.raises(InputError, match=r"share in 0\.\.1, got 1\.5"):
        blend_contents(first, second, 1.5)
    with pytest.raises(InputError, match="without keyframes, got ContentEmbedding and list"):
        blend_contents(first, [Keyframe(0.0, first)], 0.5)


def test_frames_lie_between_their_keyframes() -> None:
    first, second, third = make(1.0, 0.0), make(0.0, 1.0), make(-1.0, 0.0)
    frames = [Keyframe(0.5, first), Keyframe(1.0, second), Keyframe(1.5, third)]
    spread = spread_content(frames, 9, fps=4.0)
    angles = [math.degrees(math.atan2(*reversed(each.tokens[0].tolist()))) for each in spread]
    assert angles == pytest.approx([0, 0, 0, 45, 90, 135, 180, 180, 180], abs=1e-3)
    assert spread_content(first, 3, fps=4.0) == [first] * 3
    with pytest.raises(InputError, match=r"rising times, got 1\.0, 1\.0"):
        spread_content([Keyframe(1.0, first), Keyframe(1.0, second)], 3, fps=4.0)
    with pytest.raises(InputError, match=r"rising times, got 1\.0, nan"):
        spread_content([Keyframe(1.0, first), Keyframe(math.nan, second)], 3, fps=4.0)
