"""Random scripts of conditions that combine well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sememe.errors import InputError
from sememe.world.catalogue import can_show, conditions, parts_of
from sememe.world.condition import Condition
from sememe.world.scene import EVALUATION_SEED, Backdrop, Scene, random_scene
from sememe.world.scripts import PASSING, Span

CLOSING = frozenset(
    {
        *("bubble", "burn", "crumble_to_sand", "curtains", "dissolve_to_smoke", "explode", "flood", "fog"),
        *("inflate_and_float", "lava", "lightning", "lose_head", "melt", "portal", "shatter", "shrink_away"),
        *("slice_bands", "split_halves", "swirl", "vanish"),
        *("fade_to_black", "fade_to_white", "kaleidoscope", "smear", "tile"),
        *("corkscrew", "dash_left", "dash_right", "drift_away", "hop_left", "hop_right", "retreat", "rise", "sink"),
        *("tumble_left", "tumble_right", "walk_left", "walk_right"),
        *("defocus", "iris_out", "letterbox", "pan_left", "pan_right", "tilt_down", "tilt_up"),
        *("turn_card", "turn_page"),
    }
)
"""After these the subject is gone or the picture hides it: they end a story."""
ANCHORED = frozenset({"glow", "heart", "rays", "spotlight"})
"""These stay where the subject stood, whatever then moves."""
BROKEN = frozenset({"explode", "lose_head", "shatter", "slice_bands", "split_halves"})
BENT = frozenset({"inflate_and_float", "melt", "ripple", "spikes", "swirl"})
"""The subject in pieces cannot keep a bent outline: a piece of `BROKEN` after one of `BENT`, or the reverse, cuts."""
SHORTEST, LONGEST = 1.25, 3.0  # seconds of a span, but for the last one, which takes what is left
_TICKS = 8  # spans begin on eighths of a second
_STILL_SHARE = 0.06  # of the spans show nothing
_MOVES = frozenset({"motion", "camera"})  # families


@dataclass(frozen=True, slots=True)
class Script:
    """A scene and its spans, for `render_script(script.scene, script.spans)`.

    Attributes:
        scene: What stands before the camera.
        spans: Conditions (None for none) and their seconds.
    """

    scene: Scene
    spans: tuple[Span, ...]


def can_follow(earlier: Sequence[str | None], name: str | None) -> bool:
    """Return whether a condition is clearly visible, and begins without a cut, after others.

    `render_script` renders any order; `random_script` draws only orders for which this is True. It is False after a
    condition that hides the subject (`CLOSING`), for a condition that still lasts, for a concept under a lasting style,
    for one tied to the subject's place (`ANCHORED`) together with a motion or camera, and where a subject in pieces
    (`BROKEN`) would be bent (`BENT`) or a bent or broken one be broken.

    Args:
        earlier: Conditions of the spans before, in their order.
        name: The next one, None for none.

    Raises:
        InputError: For an unknown condition.
    """
    return (not earlier or earlier[-1] != name) and _fits(_find_lasting(earlier), parts_of(name))


def _fits(lasting: Sequence[Condition], entries: Sequence[Condition]) -> bool:
    """Return whether a span of `entries` is seen well while others last."""
    names = {entry.name for entry in lasting}
    return names.isdisjoint(CLOSING) and not any(_clashes(lasting, names, entry) for entry in entries)


def _clashes(lasting: Sequence[Condition], names: set[str], entry: Condition) -> bool:
    """Return whether a condition is not seen well while others last, whose names are `names`."""
    moves = entry.family in _MOVES
    return (
        entry.name in names
        or (entry.family == "concept" and any(each.family == "style" for each in lasting))
        or (entry.name in ANCHORED and any(each.family in _MOVES for each in lasting))
        or (moves and not names.isdisjoint(ANCHORED))
        or (entry.name in BROKEN and not (names.isdisjoint(BENT) and names.isdisjoint(BROKEN)))
        or (entry.name in BENT and not names.isdisjoint(BROKEN))
    )


def _find_lasting(names: Sequence[str | None]) -> list[Condition]:
    """The conditions whose state a next span begins from, but for those that end with their span."""
    lasting: list[Condition] = []
    for name in names:
        entries = parts_of(name)
        families = {entry.family for entry in entries}
        lasting = [each for each in lasting if entries and each.family not in families]
        lasting += [entry for entry in entries if entry.name not in PASSING]
    return lasting


def random_script(seed: int, *, seconds: float = 4.125, names: Sequence[str] | None = None) -> Script:
    """Draw a scene and a script for it.

    The scene always has a subject in front of a drawn backdrop. Scripts with seeds below `EVALUATION_SEED` are for
    training and the others for evaluation, as with scenes.

    Args:
        seed: 0 or more; the same seed gives the same script on every machine.
        seconds: Length of the whole script, 1.25 or more. Spans have 1.25 to 3 seconds, the last one the remainder.
        names: The conditions to draw from; None for all, seen and unseen.

    Raises:
        InputError: For a negative seed, too few seconds, no names or an unknown one.
    """
    if seed < 0:
        raise InputError(f"expected a seed of 0 or more, got {seed}; give a whole number such as 7")
    if not SHORTEST <= seconds < float("inf"):
        raise InputError(f"expected {SHORTEST} seconds or more for a script, got {seconds}")
    if names is not None and not names:
        raise InputError("expected at least one condition to draw from, got none")
    rng = np.random.Generator(np.random.PCG64(seed))
    scene = _draw_scene(rng, seed // EVALUATION_SEED * EVALUATION_SEED)
    # A scene with a subject can show every condition.
    deck = conditions() if names is None else [name for name in names if can_show(scene, name)]
    spans: list[Span] = []
    while seconds > 0:
        duration = round(rng.uniform(SHORTEST, LONGEST) * _TICKS) / _TICKS
        if seconds - duration < SHORTEST:
            duration = seconds
        name = _draw_condition(rng, deck, [earlier for earlier, _ in spans], is_last=duration == seconds)
        spans.append((name, duration))
        seconds -= duration
    return Script(scene, tuple(spans))


def _draw_scene(rng: np.random.Generator, first: int) -> Scene:
    while True:
        scene = random_scene(first + int(rng.integers(EVALUATION_SEED)))
        if scene.subject is not None and isinstance(scene.backdrop, Backdrop):
            return scene


def _draw_condition(
    rng: np.random.Generator, deck: Sequence[str], earlier: Sequence[str | None], *, is_last: bool
) -> str | None:
    """A condition that may come next; None occasionally, or if none can follow."""
    lasting = _find_lasting(earlier)
    is_still = rng.random() < _STILL_SHARE and None not in earlier[-1:]
    options = [
        name
        for name in deck
        if (is_last or CLOSING.isdisjoint(name.split("+")))
        and name not in earlier[-1:]
        and (not lasting or _fits(lasting, parts_of(name)))
    ]
    return None if is_still or not options else options[int(rng.integers(len(options)))]
