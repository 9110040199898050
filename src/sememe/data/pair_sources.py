"""Pairs within buckets of one length and size, and pairs whose targets list their references."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from sememe.data.pairing import HeldOutPairs, PairBatch, PairSampler
from sememe.errors import InputError

logger = logging.getLogger(__name__)

_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class PairItems:
    """Items that pairs are made of.

    Attributes:
        conditions: Condition of each.
        scenes: Scene of each.
        buckets: Bucket of each.
        references: Items that may be the reference of each, of its condition; none means all of other scenes.
        max_references: Largest number of references of a target.
    """

    conditions: Sequence[str]
    scenes: Sequence[str]
    buckets: Sequence[str]
    references: Sequence[Sequence[int]]
    max_references: int = 1

    @cached_property
    def groups(self) -> Sequence[str]:
        """What the items of a group have in common: condition and bucket."""
        if len(set(self.buckets)) == 1:
            return self.conditions
        return [f"{condition}, {bucket}" for condition, bucket in zip(self.conditions, self.buckets, strict=True)]


def make_pairs(items: PairItems, *, same_scene_share: float, left_out: np.ndarray | None = None) -> PairSource:
    """Make the source of pairs of some items: of one bucket each, and with listed references where there are some.

    Where there are several buckets, conditions with too few scenes in one of them are left out there, with a warning.

    Args:
        items: Items.
        same_scene_share: As `PairSampler` takes it; without effect in buckets in which no scene appears twice.
        left_out: Items that are never drawn, (item,).

    Raises:
        InputError: A target and its references need a scene each of one condition, and there are too few, or in the
            only bucket a condition has too few.
        RecipeError: The share cannot take effect.
    """
    drawn = np.ones(len(items.conditions), bool) if left_out is None else ~left_out
    if len(set(items.buckets)) == 1:
        pairs: PairSource = PairSampler(
            items.conditions,
            items.scenes,
            same_scene_share=same_scene_share,
            max_references=items.max_references,
            left_out=left_out,
        )
    else:
        pairs = _make_bucket_pairs(items, drawn, same_scene_share)
    return ListedPairs(pairs, items, drawn, drawn) if any(items.references) else pairs


def make_held_out_pairs(items: PairItems, held: np.ndarray) -> PairSource:
    """Make the source of pairs whose targets are held out, and whose references are not.

    Args:
        items: Items.
        held: Whether each item is held out, (item,); each of `items.groups` of one that is has others that are not.
    """
    members = {}
    for bucket in dict.fromkeys(items.buckets):
        found = np.flatnonzero(np.array([each == bucket for each in items.buckets]))
        if held[found].any():
            members[bucket] = found

    def make(bucket: str) -> PairSource:
        return HeldOutPairs([items.conditions[member] for member in members[bucket].tolist()], held[members[bucket]])

    pairs = BucketPairs(members, make) if len(members) > 1 else HeldOutPairs(items.groups, held)
    return ListedPairs(pairs, items, held, ~held) if any(items.references) else pairs


def _make_bucket_pairs(items: PairItems, drawn: np.ndarray, share: float) -> BucketPairs:
    """The sources of all buckets that contain a pair."""
    members = find_members(items, drawn)
    shares = {bucket: share if _is_any_shared(items, each) else 0.0 for bucket, each in members.items()}
    if not any(shares.values()):
        # Each of them refuses a share then.
        shares = dict.fromkeys(shares, share)

    def make(bucket: str) -> PairSource:
        of_bucket = ([each[member] for member in members[bucket]] for each in (items.conditions, items.scenes))
        return PairSampler(*of_bucket, same_scene_share=shares[bucket], max_references=items.max_references)

    return BucketPairs(members, make)


class BucketPairs:
    """Draws batches of pairs, each from one bucket, with probability proportional to its number of items.

    Args:
        members: Items of each bucket.
        make: Makes the source of a bucket, which counts its items from 0.
    """

    def __init__(self, members: dict[str, np.ndarray], make: Callable[[str], PairSource]) -> None:
        self._members = list(members.values())
        self._sources = [make(bucket) for bucket in members]
        self._ends = np.cumsum([len(each) for each in self._members])

    def draw(self, generator: np.random.Generator, *counts: int) -> PairBatch:
        """Draw one batch. The same generator state gives the same batch."""
        number = int(np.searchsorted(self._ends, generator.integers(self._ends[-1]), side="right"))
        batch, members = self._sources[number].draw(generator, *counts), self._members[number]
        return PairBatch(references=members[batch.references], targets=members[batch.targets])


def find_members(items: PairItems, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """The items of each bucket that may be drawn, except of conditions with too few scenes in it.

    Raises:
        InputError: Nothing is left.
    """
    groups: dict[str, dict[str, list[int]]] = {}
    for item in np.flatnonzero(drawn).tolist():
        groups.setdefault(items.buckets[item], {}).setdefault(items.conditions[item], []).append(item)
    members = {}
    for bucket, found in groups.items():
        scenes = {condition: {items.scenes[item] for item in each} for condition, each in found.items()}
        lonely = {condition for condition, each in scenes.items() if len(each) <= items.max_references}
        if lonely:
            names, needed = ", ".join(sorted(lonely)), items.max_references + 1
            logger.warning("left out of bucket %s, because %d scenes are needed: %s", bucket, needed, names)
        kept = [item for condition, each in found.items() if condition not in lonely for item in each]
        if kept:
            members[bucket] = np.array(sorted(kept), np.int64)
    if not members:
        raise InputError(
            f"no condition has {items.max_references + 1} scenes in one bucket, as a target and its references need; "
            "give fewer buckets"
        )
    return members


def _is_any_shared(items: PairItems, members: np.ndarray) -> bool:
    """Whether a scene appears under two conditions."""
    pairs = {(items.scenes[member], items.conditions[member]) for member in members.tolist()}
    return len(pairs) > len({scene for scene, _ in pairs})


class ListedPairs:
    """Draws the pairs of another source, and replaces references and targets that do not match the lists.

    In each group the first target stays. If it lists references, it gets some of these, and other targets that do not
    list them are replaced. Without lists in a condition nothing changes.

    Args:
        pairs: Other source.
        items: Items; of their listed references, those of their own bucket are used.
        are_targets: Whether each item may be a target, (item,).
        are_references: Whether each item may be a reference, (item,).
    """

    def __init__(
        self, pairs: PairSource, items: PairItems, are_targets: np.ndarray, are_references: np.ndarray
    ) -> None:
        self._pairs, self._scenes, self._groups = pairs, items.scenes, items.groups
        self._references = [
            [each for each in listed if are_references[each] and items.groups[each] == items.groups[item]]
            for item, listed in enumerate(items.references)
        ]
        self._targets: dict[int, list[int]] = {}
        self._free: dict[str, list[int]] = {}
        for target in np.flatnonzero(are_targets).tolist():
            for reference in self._references[target]:
                self._targets.setdefault(reference, []).append(target)
                self._free.setdefault(items.groups[target], [])
        for target in np.flatnonzero(are_targets).tolist():
            if not self._references[target] and items.groups[target] in self._free:
                self._free[items.groups[target]].append(target)

    def draw(self, generator: np.random.Generator, *counts: int) -> PairBatch:
        """Draw one batch. The same generator state gives the same batch."""
        batch = self._pairs.draw(generator, *counts)
        references, targets = (each.reshape(counts[0], -1).copy() for each in (batch.references, batch.targets))
        for number in range(counts[0]):
            if self._groups[targets[number, 0]] in self._free:
                self._exchange(generator, references[number], targets[number])
        return PairBatch(references=references.ravel(), targets=targets.ravel())

    def _exchange(self, generator: np.random.Generator, references: np.ndarray, targets: np.ndarray) -> None:
        listed = self._references[targets[0]]
        if listed:
            count = len(references)
            references[:] = generator.choice(listed, size=count, replace=count > len(listed))
        if len(targets) == 1:
            return
        allowed = self._list_targets(references)
        taken = {self._scenes[targets[0]]}
        for place in range(1, len(targets)):
            # Prefer targets of other scenes, within a few tries.
            for _ in range(_TRIES):
                if targets[place] in allowed and self._scenes[targets[place]] not in taken:
                    break
                targets[place] = allowed[int(generator.integers(len(allowed)))]
            taken.add(self._scenes[targets[place]])

    def _list_targets(self, references: np.ndarray) -> list[int]:
        """Items that may have these references: those that list all, and those of other scenes that list none."""
        shown, scenes = set(references.tolist()), {self._scenes[each] for each in references}
        listing = [each for each in self._targets.get(int(references[0]), []) if shown <= set(self._references[each])]
        free = self._free[self._groups[references[0]]]
        return listing + [target for target in free if self._scenes[target] not in scenes]


PairSource: TypeAlias = PairSampler | HeldOutPairs | BucketPairs | ListedPairs
"""Draws pairs."""
