"""Which scenes and conditions an evaluation films: a pure function of its settings.

Unseen conditions for choosing are kept apart from those that are reported. The halves are fixed by name: every second
one of each family in alphabetical order, with mirrored conditions in one half. A condition that joins the world later
is reported."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int

from sememe.errors import InputError
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
    """Return names of conditions, sorted.

    Args:
        split: "seen"; "unseen" for the reported half; "unseen_validation" for the other; "novel"; None for seen and
            both halves.
    """
    if split == "unseen_validation":
        return sorted(UNSEEN_VALIDATION)
    return [name for name in conditions(split=split) if split != "unseen" or name not in UNSEEN_VALIDATION]


def condition_groups(name: str) -> tuple[str, ...]:
    """Return the groups in which the accuracy of a condition is counted: its split and its family."""
    first, *others = parts_of(name)
    if others:
        return ("novel",)
    return ("unseen_validation" if name in UNSEEN_VALIDATION else first.split, first.family)


@dataclass(frozen=True, slots=True)
class Case:
    """One trial: the target's scene and condition, the scene of the reference, and the seed of the noise."""

    scene: int
    condition: str
    reference_scene: int
    noise_seed: int


@dataclass(frozen=True, slots=True)
class SeedRanges:
    """Where seeds of scenes come from; targets and references never share a scene, nor does training with either.

    Attributes:
        first_scene: The first seed for targets.
        first_reference: The first seed for references.
        size: Number of seeds in each range.
    """

    first_scene: int
    first_reference: int
    size: int = 1_000_000

    def __post_init__(self) -> None:
        gap = abs(self.first_reference - self.first_scene)
        if min(self.first_scene, self.first_reference) < 0 or gap < self.size:
            raise InputError(f"expected ranges of {self.size} seeds of 0 or more that do not overlap, got {self}")


@dataclass(frozen=True, eq=False)
class _Shuffled:
    """Places in the ranges of scenes and references in random order, and the generator's state after that."""

    scenes: Int[np.ndarray, " size"]
    references: Int[np.ndarray, " size"]
    state: Mapping[str, Any]


@lru_cache(maxsize=4)
def _shuffle(seed: int, size: int) -> _Shuffled:
    """Shuffle both ranges; every row of an evaluation begins so, and a million places take a while."""
    rng = np.random.Generator(np.random.PCG64(seed))
    scenes, references = (rng.permutation(size).astype(np.int32) for _ in range(2))
    return _Shuffled(scenes, references, rng.bit_generator.state)


def deal_cases(
    names: Sequence[str],
    num_cases: int,
    ranges: SeedRanges,
    *,
    applies: Callable[[int, str], bool] = lambda scene, name: True,
    per_scene: int = 8,
    seed: int = 0,
    same_noise: bool = True,
) -> tuple[Case, ...]:
    """Deal conditions to scenes: evenly, no condition twice in a scene, every reference from a scene of its own.

    Args:
        names: Names of the conditions.
        num_cases: Number of trials, which are in the order of their scenes.
        ranges: Ranges of seeds.
        applies: Whether the scene of a seed can show a condition; targets and references are dealt what they can.
        per_scene: Largest number of conditions that share a scene, and so its renders.
        seed: Seed of the draw.
        same_noise: One noise seed for all cases of a scene, so that they differ in the reference alone; otherwise one
            for each case.

    Raises:
        InputError: There are no conditions, or a number is below 1.
    """
    if not names or num_cases < 1 or per_scene < 1 or seed < 0:
        raise InputError(
            f"expected conditions, num_cases and per_scene of 1 or more and a seed of 0 or more, got {len(names)} "
            f"conditions, {num_cases}, {per_scene} and {seed}"
        )
    if num_cases > ranges.size:
        raise InputError(f"expected at most {ranges.size} cases, got {num_cases}")
    shuffled = _shuffle(seed, ranges.size)
    rng = np.random.Generator(np.random.PCG64())
    rng.bit_generator.state = shuffled.state
    scenes = (ranges.first_scene + int(place) for place in shuffled.scenes)
    references = (ranges.first_reference + int(place) for place in shuffled.references)
    uses = np.zeros(len(names))
    cases: list[Case] = []
    while len(cases) < num_cases:
        scene = next(scenes)
        noise_seed = int(rng.integers(1 << 31))
        # The least used conditions come first, in random order among equals.
        order = np.lexsort([rng.random(len(names)), uses])
        dealt = [index for index in order if applies(scene, names[index])][: min(per_scene, num_cases - len(cases))]
        uses[dealt] += 1
        for index in rng.permutation(dealt).astype(int):
            noise = noise_seed if same_noise else int(rng.integers(1 << 31))
            reference = next(seed for seed in references if applies(seed, names[index]))
            cases.append(Case(scene, names[index], reference, noise))
    return tuple(cases)
