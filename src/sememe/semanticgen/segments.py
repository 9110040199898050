"""Texts for parts of a video. Imports no torch."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sememe.errors import InputError

_SPAN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*-\s*(\d+(?:\.\d*)?|\.\d+)\s*:(.*)", re.DOTALL)
_ROUNDING = 1e-6  # seconds


@dataclass(frozen=True)
class Segment:
    """A text for a time span.

    Attributes:
        start: First second.
        stop: Second at which it ends.
        text: What happens.
    """

    start: float
    stop: float
    text: str

    def __str__(self) -> str:
        return f"{self.start:g}-{self.stop:g}: {self.text}"


def parse_segment(text: str) -> Segment:
    """Read a segment in the form "0-4: it jumps", in seconds.

    Raises:
        InputError: The text has another form.
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        raise InputError(f'expected a segment such as "0-4: it jumps", in seconds, got {text!r}')
    return Segment(float(found[1]), float(found[2]), found[3].strip())


def to_segments(given: Sequence[Any]) -> tuple[Segment, ...]:
    """Return segments that cover a video from its beginning, without gaps and overlaps.

    Args:
        given: Pairs of seconds and text, one after another, or `Segment` records.

    Raises:
        InputError: A pair has another form, a segment does not last, or does not begin where the one before it ends.
    """
    segments: list[Segment] = []
    for each in given:
        start = segments[-1].stop if segments else 0.0
        segments.append(each if isinstance(each, Segment) else _to_segment(each, start))
    for segment in segments:
        if not segment.start < segment.stop < math.inf:
            raise InputError(f"expected a segment of more than 0 seconds, got {segment}")
    if segments and segments[0].start > _ROUNDING:
        raise InputError(f"expected the first segment to begin at 0 seconds, got {segments[0]}")
    for before, after in pairwise(segments):
        if abs(after.start - before.stop) > _ROUNDING:
            kind = "leave a gap between" if after.start > before.stop else "overlap between"
            low, high = sorted((before.stop, after.start))
            raise InputError(
                f"expected segments that begin where the one before ends, but they {kind} {low:g} and {high:g} seconds"
            )
    return tuple(segments)


def _to_segment(pair: Any, start: float) -> Segment:
    match pair:
        case (int() | float() as seconds, str() as text) if not isinstance(seconds, bool):
            return Segment(start, start + seconds, text)
    raise InputError(f'expected segments as pairs of seconds and text, such as (4, "it jumps"), got {pair!r}')


def join_texts(prompt: str, segments: Sequence[Segment]) -> tuple[str, ...]:
    """Return the text of each segment: the prompt, which holds for all, and then its own; without any, the prompt."""
    return tuple(f"{prompt} {segment.text}".strip() for segment in segments) or (prompt,)
