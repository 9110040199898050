"""Segments: how they are written, and the rule that they follow one another."""

import pytest

from sememe.errors import InputError
from sememe.semanticgen.segments import Segment, join_texts, parse_segment, to_segments


def test_segments_are_read_from_texts() -> None:
    assert parse_segment("0-4: it jumps: high") == Segment(0.0, 4.0, "it jumps: high")
    assert parse_segment(" 1.5 - .75:") == Segment(1.5, 0.75, "")
    for text in ("it jumps", "0:4: a", "-1-2: a", "0-4"):
        with pytest.raises(InputError, match="0-4: it jumps"):
            parse_segment(text)


def test_pairs_follow_one_another() -> None:
    assert to_segments([(4, "a"), (0.5, "b")]) == (Segment(0.0, 4.0, "a"), Segment(4.0, 4.5, "b"))
    assert to_segments([]) == ()


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (("0-4: a", "5-6: b"), "leave a gap between 4 and 5 seconds"),
        (("0-4: a", "3-6: b"), "overlap between 3 and 4 seconds"),
        (("1-4: a",), "begin at 0 seconds, got 1-4: a"),
        (("0-4: a", "4-4: b"), "more than 0 seconds, got 4-4: b"),
    ],
)
def test_gaps_and_overlaps_are_named(spans: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_segments([parse_segment(span) for span in spans])


def test_other_forms_are_refused() -> None:
    with pytest.raises(InputError, match="pairs of seconds and text"):
        to_segments([("it jumps", 4)])


def test_the_prompt_comes_before_each_text() -> None:
    segments = to_segments([(1, "it jumps"), (1, "")])
    assert join_texts("a cat", segments) == ("a cat it jumps", "a cat")
    assert join_texts("", segments) == ("it jumps", "")
    assert join_texts("a cat", ()) == ("a cat",)
