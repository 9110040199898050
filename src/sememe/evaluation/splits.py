"""Which conditions an evaluation uses: unseen ones for choosing are kept apart from those that are reported.

The halves of the unseen conditions are fixed by name: every second one of each family in alphabetical order, with
mirrored conditions in one half. A condition that joins the world later is reported.
"""

from sememe.world import conditions
from sememe.world.catalogue import parts_of

UNSEEN_VALIDATION = (
    *("burn", "ghost", "multiply", "split_halves"),
    *("hatch", "old_film", "underwater"),
    *("corkscrew", "peekaboo", "tumble_left", "tumble_right"),
    *("fisheye", "orbit_left", "orbit_right"),
)
"""Unseen conditions on which steps, guidance and checkpoints are chosen, family by family."""


def split_conditions(split: str | None) -> list[str]:
    """Names of conditions, sorted.

    Args:
        split: "seen"; "unseen" for the reported half; "unseen_validation" for the other; "novel"; None for seen and
            both halves.
    """
    if split == "unseen_validation":
        return sorted(UNSEEN_VALIDATION)
    return [name for name in conditions(split=split) if split != "unseen" or name not in UNSEEN_VALIDATION]


def condition_groups(name: str) -> tuple[str, ...]:
    """The groups in which the accuracy of a condition is counted: its split and its family."""
    first, *others = parts_of(name)
    if others:
        return ("novel",)
    return ("unseen_validation" if name in UNSEEN_VALIDATION else first.split, first.family)
