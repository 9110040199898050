"""The list of all conditions; each is defined in the file of its family.

A condition of the split "unseen" never differs from a seen one by a number, a colour or a direction alone: conditions
of one function with other arguments are in the same split. "novel" conditions are pairs of seen ones from two
families, joined by "+". Random conditions, such as "random_17", are for training alone and in no list here.
"""

from __future__ import annotations

import difflib
from functools import lru_cache, partial

from sememe.errors import InputError
from sememe.world import cameras, concepts, elements, motions, styles
from sememe.world.condition import Condition
from sememe.world.random_conditions import PREFIX, random_condition
from sememe.world.scene import Scene

NOVEL_PAIRS = (
    ("melt", "zoom_in"),
    ("inflate_and_float", "night"),
    ("turn_to_gold", "roll_clockwise"),
    ("shatter", "sepia"),
    ("jump", "snow"),
    ("spin_clockwise", "invert"),
    ("walk_left", "sketch"),
    ("sway", "zoom_out"),
    ("approach", "grayscale"),
    ("dance", "confetti"),
    ("flood", "pan_right"),
    ("fire", "rock"),
    ("rainbow", "tilt_up"),
    ("turn_to_stone", "zoom_pulse"),
    ("hop_right", "neon"),
    ("topple_left", "blueprint"),
    ("vanish", "sunset"),
    ("spotlight", "squash_flat"),
    ("cage", "tremble"),
    ("heart", "pan_left"),
)
FAMILIES = ("concept", "style", "motion", "camera")
SPLITS = ("seen", "unseen", "novel")


CATALOGUE: tuple[Condition, ...] = (
    *concepts.concept.conditions,
    *elements.concept.conditions,
    *styles.style.conditions,
    *motions.motion.conditions,
    *cameras.camera.conditions,
)
_BY_NAME = {condition.name: condition for condition in CATALOGUE}
_draw = lru_cache(maxsize=8192)(partial(random_condition, catalogue=CATALOGUE))


def conditions(family: str | None = None, split: str | None = None, *, scene: Scene | None = None) -> list[str]:
    """Names of conditions, sorted.

    Args:
        family: One of "concept", "style", "motion", "camera", or None for all.
        split: "seen", "unseen", "novel" (two seen conditions of different families at once, named "melt+zoom_in"), or
            None for seen and unseen.
        scene: Scene that they must apply to; None for all conditions.

    Raises:
        InputError: For a family or split that does not exist.
    """
    if family is not None and family not in FAMILIES:
        raise InputError(f"expected a family of {', '.join(FAMILIES)}, got {family!r}")
    if split is not None and split not in SPLITS:
        raise InputError(f"expected a split of {', '.join(SPLITS)}, got {split!r}")
    if split == "novel":
        names = [f"{first}+{second}" for first, second in NOVEL_PAIRS if family in (None, _BY_NAME[first].family)]
    else:
        names = [
            condition.name
            for condition in CATALOGUE
            if family in (None, condition.family) and split in (None, condition.split)
        ]
    return sorted(name for name in names if scene is None or can_show(scene, name))


def can_show(scene: Scene, name: str) -> bool:
    """Return whether a condition, or several joined by "+", can be applied to the scene."""
    return all(part.applies_to(scene) for part in parts_of(name))


def condition(name: str) -> Condition:
    """The record of one condition, of the catalogue or random.

    Raises:
        InputError: If there is none of that name; the message names similar ones.
    """
    if name.startswith(PREFIX) and name.removeprefix(PREFIX).isdecimal():
        return _draw(int(name.removeprefix(PREFIX)))
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see sememe.world.conditions()"
        raise InputError(f"unknown condition {name!r}; {hint}")
    return _BY_NAME[name]


@lru_cache(maxsize=8192)
def parts_of(name: str | None) -> tuple[Condition, ...]:
    """The conditions that a name such as "melt+zoom_in" joins; empty for None.

    Raises:
        InputError: If one is unknown, or occurs twice.
    """
    names = [] if name is None else name.split("+")
    if len(set(names)) < len(names):
        raise InputError(f"expected different conditions in {name!r}; name each once")
    return tuple(condition(part) for part in names)
