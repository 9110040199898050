"""Scripts: one condition after another in one scene.

A span begins without a cut: its first frame repeats the last state of the span before, and its condition begins from
there. The earlier condition then lasts or passes:

- A condition lasts until a span with a condition of the same family, or with none, begins. Motions and cameras keep
their final position; concepts and styles continue in time, so that rain keeps falling.
- Conditions in `PASSING` end with their span: a jump, a shake.

An ending condition is eased out within `SETTLE_SECONDS`, while the next one begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sememe.errors import InputError
from sememe.video.clip import Clip
from sememe.world.blending import Act, perform
from sememe.world.captions import full_caption, neutral_caption, script_caption
from sememe.world.condition import Condition
from sememe.world.renderer import RenderedClip, check_condition, check_size, film, film_opening
from sememe.world.scene import Scene
from sememe.world.stage import build_stage
from sememe.world.take import Floats

SETTLE_SECONDS = 0.5
PASSING = frozenset(
    {
        *("jump", "spin_clockwise", "spin_counterclockwise", "sway", "tremble", "circle", "turn_round", "duck"),
        *("heartbeat", "dance", "billiard", "teleport", "spring", "figure_eight", "backflip", "pendulum", "peekaboo"),
        *("zoom_pulse", "handheld", "earthquake", "rock", "bob", "glance", "circle_view", "whip_pan", "blink"),
    }
)
"""Motions and cameras that end with their span; all other conditions last."""
_PIXELS_AT_ONCE = 1 << 18  # of the frames that are filmed together

Span = tuple[str | None, float]
"""A condition, or None for nothing, and its seconds."""


@dataclass(frozen=True, slots=True)
class RenderedSpan:
    """A span of a filmed script.

    Attributes:
        start: Seconds at which its first frame begins.
        end: Seconds at which its last frame ends.
        condition: Condition, None for none.
        caption: Who, where, and what happens in this span.
    """

    start: float
    end: float
    condition: str | None
    caption: str


@dataclass(frozen=True, slots=True)
class RenderedScript(RenderedClip):
    """A filmed script; its full caption says who, where, and what happens in all spans, which are in order."""

    spans: tuple[RenderedSpan, ...]


def render_script(
    scene: Scene, spans: Sequence[Span], *, size: int | tuple[int, int] = 64, fps: float = 8
) -> RenderedScript:
    """Film conditions one after another.

    A script of one span is the clip that `render` gives for as many frames.

    Args:
        scene: What stands before the camera.
        spans: Conditions and their seconds, such as `[("jump", 2.0), ("walk_left", 3.0)]`; a condition is a name from
            `conditions()`, several joined by "+", or None for nothing. Spans begin and end at the nearest frame.
        size: The side of a square picture, or (height, width), each 16 to 1024 pixels.
        fps: Frames per second.

    Raises:
        InputError: For no spans, an unknown condition or one that the scene cannot show, seconds that are not above 0,
            a span shorter than two frames, a size or rate out of range.
    """
    parts = list(iter_script(scene, spans, size=size, fps=fps))
    edges = frame_edges(spans, fps)
    entries = [check_condition(scene, name) for name, _ in spans]
    return RenderedScript(
        clip=Clip(np.concatenate([part.clip.frames for part in parts]), float(fps)),
        depth=np.concatenate([part.depth for part in parts]),
        mask=np.concatenate([part.mask for part in parts]),
        caption=neutral_caption(scene),
        full_caption=script_caption(scene, entries),
        spans=tuple(
            RenderedSpan(edges[place] / fps, edges[place + 1] / fps, name, full_caption(scene, entries[place]))
            for place, (name, _) in enumerate(spans)
        ),
    )


def iter_script(
    scene: Scene, spans: Sequence[Span], *, size: int | tuple[int, int] = 64, fps: float = 8, skip: int = 0
) -> Iterator[RenderedClip]:
    """Render a script in parts, so that memory does not grow with its length.

    Arguments and errors are those of `render_script`; errors are raised before the first part is rendered. The first
    `skip` spans are not rendered. Later spans look as in the whole script, except that the first frame repeats no
    earlier one and may show hairlines where pieces touch.

    Returns:
        Parts in order, each with some frames of one span and its caption.
    """
    height, width = check_size(size)
    if not (math.isfinite(fps) and fps > 0):
        raise InputError(f"expected frames per second above 0, got {fps}")
    if not spans:
        raise InputError("expected at least one span such as ('jump', 2.0), got none")
    for name, _ in spans:
        check_condition(scene, name)
    return _film_spans(scene, tuple(spans), frame_edges(spans, fps), (height, width), fps, skip)


def frame_edges(spans: Sequence[Span], fps: float) -> list[int]:
    """Return the first frame of every span, and the number of all frames.

    Raises:
        InputError: A span has seconds that are not above 0, or fewer than two frames.
    """
    edges, seconds = [0], 0.0
    for number, (name, duration) in enumerate(spans, start=1):
        if not (math.isfinite(duration) and duration > 0):
            raise InputError(f"expected seconds above 0 for span {number} ({name}), got {duration}")
        seconds += duration
        edges.append(math.floor(seconds * fps + 0.5))
        if edges[-1] - edges[-2] < 2:
            raise InputError(
                f"expected at least two frames for span {number} ({name}), got {duration} seconds at {fps} frames per "
                f"second; give it {2 / fps:.3g} seconds or more"
            )
    return edges


@dataclass(slots=True)
class _Held:
    """A condition that has begun: the times, in frames, at which it did, after which it is over, and is eased away."""

    entry: Condition
    begin: int
    length: int
    release: int | None = None

    def at(self, clock: Floats, settle: int) -> Act:
        progress = (clock - self.begin) * (1 / self.length)
        progress[clock == self.begin + self.length] = 1
        if self.entry.family in {"motion", "camera"}:
            progress = progress.clip(0, 1)
        strength = np.ones_like(progress)
        if self.release is not None:
            share = ((clock - self.release) / settle).clip(0, 1)
            strength = 1 - share * share * (3 - 2 * share)
        return Act(self.entry, progress.astype(np.float32), strength.astype(np.float32))


def _film_spans(
    scene: Scene, spans: tuple[Span, ...], edges: list[int], size: tuple[int, int], fps: float, skip: int
) -> Iterator[RenderedClip]:
    height, width = size
    settle = max(1, round(SETTLE_SECONDS * fps))
    together = max(4, _PIXELS_AT_ONCE // (height * width))
    stage = build_stage(scene, height, width)
    held: list[_Held] = []
    last = None if skip else film_opening(scene, height, width)
    # Time does not advance at the start of a span: its first frame repeats the frame before.
    clock = 0
    for place, (name, _) in enumerate(spans):
        num_frames = edges[place + 1] - edges[place]
        entries = check_condition(scene, name)
        _release(held, entries, clock)
        held += [_Held(entry, clock, num_frames - 1) for entry in entries]
        # Parts also begin where easing out ends, because it is absent from a part's first frame on.
        starts = [*range(0, min(settle, num_frames), together), *range(settle, num_frames, together)]
        for first, after in pairwise([*starts, num_frames] if place >= skip else []):
            count = after - first
            held = [each for each in held if each.release is None or clock + first - each.release < settle]
            times = clock + first + np.arange(count, dtype=np.float64)
            shot = film(perform(stage, count, [each.at(times, settle) for each in held]))
            if first == 0 and last is not None:
                for rendered, before in zip(shot, last, strict=True):
                    rendered[0] = before[-1]
            last, clip = shot, Clip(shot.frames, float(fps))
            yield RenderedClip(clip, shot.depth, shot.mask, neutral_caption(scene), full_caption(scene, entries))
        clock += num_frames - 1


def _release(held: Sequence[_Held], entries: Sequence[Condition], clock: int) -> None:
    """Release conditions that do not last through a span that begins with `entries`."""
    families = {entry.family for entry in entries}
    for each in held:
        ends = not entries or each.entry.family in families or each.entry.name in PASSING
        if ends and each.release is None:
            each.release = clock
