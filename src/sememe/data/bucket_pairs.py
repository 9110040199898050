"""Batches of clips of one length and size, and pairs whose targets say which references they may be shown with."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from sememe.data.pairing import PairBatch, PairSampler
from sememe.errors import InputError

logger = logging.getLogger(__name__)

_TRIES = 8


@runtime_checkable
class PairSource(Protocol):
    """Draws pairs; `data.pairing.PairSampler` is one."""

    def draw(self, generator: np.random.Generator, *counts: int) -> PairBatch:
        """Draw as many groups of references and targets as the first count says; see `PairSampler.draw`."""
        ...


class ItemSampler:
    """Draws items of one bucket, each item as often as any other."""

    def __init__(self, buckets_per_item: Sequence[str]) -> None:
        numbers = {bucket: number for number, bucket in enumerate(dict.fromkeys(buckets_per_item))}
        self._numbers = np.array([numbers[bucket] for bucket in buckets_per_item])
        self._members = [np.flatnonzero(self._numbers == number) for number in range(len(numbers))]

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Draw items, (count,) int64. The same generator state gives the same items."""
        if len(self._members) == 1:
            return generator.integers(len(self._numbers), size=count)
        members = self._members[self._numbers[generator.integers(len(self._numbers))]]
        return members[generator.integers(len(members), size=count)]


def make_pairs(
    conditions: Sequence[str],
    scenes: Sequence[str],
    buckets: Sequence[str],
    references: Sequence[Sequence[int]],
    *,
    same_scene_share: float,
) -> PairSource:
    """Make the source of pairs of some items: of one bucket each, and with listed references where there are some.

    Args:
        conditions: Condition of each item.
        scenes: Scene of each item.
        buckets: Bucket of each item. Where there are several, conditions with a single scene in one of them are left
            out there, with a warning.
        references: Items that may be the reference of each item, of its condition; none means all of other scenes.
        same_scene_share: As `PairSampler` takes it; without effect in buckets where no scene is seen twice.

    Raises:
        InputError: A pair needs two scenes of one condition, and there are none, or in the only bucket a condition has
            one.
        RecipeError: The share cannot take effect.
    """
    if len(set(buckets)) == 1:
        pairs: PairSource = PairSampler(conditions, scenes, same_scene_share=same_scene_share)
    else:
        pairs = _make_bucket_pairs(conditions, scenes, buckets, same_scene_share)
    return ListedPairs(pairs, conditions, scenes, buckets, references) if any(references) else pairs


def _make_bucket_pairs(
    conditions: Sequence[str], scenes: Sequence[str], buckets: Sequence[str], share: float
) -> "BucketPairs":
    """The sources of all buckets in which there is a pair."""
    members = find_members(buckets, conditions, scenes)
    shares = {bucket: share if _is_any_shared(each, conditions, scenes) else 0.0 for bucket, each in members.items()}
    if not any(shares.values()):
        # Each of them refuses a share then.
        shares = dict.fromkeys(shares, share)

    def make(bucket: str) -> PairSource:
        of_bucket = ([each[member] for member in members[bucket]] for each in (conditions, scenes))
        return PairSampler(*of_bucket, same_scene_share=shares[bucket])

    return BucketPairs(members, make)


class BucketPairs:
    """Draws pairs of one bucket each; a bucket comes as often as it has items.

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


def find_members(buckets: Sequence[str], conditions: Sequence[str], scenes: Sequence[str]) -> dict[str, np.ndarray]:
    """The items of each bucket, except of conditions with a single scene in it; buckets without any are left out.

    Raises:
        InputError: Nothing is left.
    """
    groups: dict[str, dict[str, list[int]]] = {}
    for index, (bucket, condition) in enumerate(zip(buckets, conditions, strict=True)):
        groups.setdefault(bucket, {}).setdefault(condition, []).append(index)
    members = {}
    for bucket, found in groups.items():
        lonely = sorted(condition for condition, items in found.items() if len({scenes[item] for item in items}) < 2)
        if lonely:
            logger.warning("left out of bucket %s, because a pair needs two scenes: %s", bucket, ", ".join(lonely))
        kept = [item for condition, items in found.items() if condition not in lonely for item in items]
        if kept:
            members[bucket] = np.array(sorted(kept), np.int64)
    if not members:
        raise InputError("no condition has two scenes in one bucket, and a pair needs two; give fewer buckets")
    return members


def _is_any_shared(members: np.ndarray, conditions: Sequence[str], scenes: Sequence[str]) -> bool:
    """Whether a scene is seen under two conditions."""
    pairs = {(scenes[member], conditions[member]) for member in members}
    return len(pairs) > len({scene for scene, _ in pairs})


class ListedPairs:
    """Draws the pairs of another source, and exchanges what is not listed.

    In each group the first target stays. If it lists references, it gets some of these; the other targets are exchanged
    where they list others. In conditions where nobody lists any, all stays as it was drawn. Lists of a bucket are what
    lies in it.

    Args:
        pairs: Other source.
        conditions: Condition of each item.
        scenes: Scene of each item.
        buckets: Bucket of each item.
        references: Items that may be the reference of each item, of its condition; none means all of other scenes.
    """

    def __init__(
        self,
        pairs: PairSource,
        conditions: Sequence[str],
        scenes: Sequence[str],
        buckets: Sequence[str],
        references: Sequence[Sequence[int]],
    ) -> None:
        self._pairs, self._scenes = pairs, scenes
        self._references = [
            [each for each in listed if buckets[each] == buckets[item]] for item, listed in enumerate(references)
        ]
        self._groups = list(zip(conditions, buckets, strict=True))
        self._targets: dict[int, list[int]] = {}
        for target, listed in enumerate(self._references):
            for reference in listed:
                assert conditions[reference] == conditions[target], f"{reference} is of another condition than {target}"
                self._targets.setdefault(reference, []).append(target)
        self._free: dict[tuple[str, str], list[int]] = {self._groups[reference]: [] for reference in self._targets}
        for target, listed in enumerate(self._references):
            if not listed and self._groups[target] in self._free:
                self._free[self._groups[target]].append(target)

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
        allowed = self._list_targets(int(references[0]))
        taken = {self._scenes[targets[0]]}
        for place in range(1, len(targets)):
            # Targets of other scenes, as long as a few tries find some.
            for _ in range(_TRIES):
                if targets[place] in allowed and self._scenes[targets[place]] not in taken:
                    break
                targets[place] = allowed[int(generator.integers(len(allowed)))]
            taken.add(self._scenes[targets[place]])

    def _list_targets(self, reference: int) -> list[int]:
        """Items that may have a reference: those that list it, and those of other scenes that list none."""
        free = [
            target for target in self._free[self._groups[reference]] if self._scenes[target] != self._scenes[reference]
        ]
        return self._targets.get(reference, []) + free
