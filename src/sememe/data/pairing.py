"""Pairs of clips for training, and the captions and references that a network receives for them.

Captions that never name the condition, and captions dropped independently of the reference, make a model rely on the
reference instead of the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from sememe.data.caption_policy import CaptionPolicy
from sememe.errors import InputError, RecipeError


class CaptionKind(IntEnum):
    """The kind of caption that the text encoder receives for a clip."""

    EMPTY = 0
    NEUTRAL = 1
    """Who and where."""
    FULL = 2
    """Also what happens."""


@dataclass(frozen=True)
class CaptionChoice:
    """The captions and references of a batch.

    `targets` (num_targets,) and `references` (num_references,) hold values of `CaptionKind` as int8;
    `dropped_references` (num_targets,) is True for targets without their reference.
    """

    targets: np.ndarray
    references: np.ndarray
    dropped_references: np.ndarray


def draw_captions(
    policy: CaptionPolicy,
    generator: np.random.Generator,
    *,
    num_targets: int,
    num_references: int = 0,
    unnamed_targets: np.ndarray | None = None,
) -> CaptionChoice:
    """Draw the caption of each target and reference.

    Where `unnamed_targets` (boolean, one for each) is True the condition is never named: a caption that would be full
    is neutral. The draws of the others do not depend on it.
    """
    return CaptionChoice(
        targets=_draw_kinds(policy.drop_target_caption, policy.full_share, generator, num_targets, unnamed_targets),
        references=_draw_kinds(policy.drop_reference_caption, policy.full_share, generator, num_references),
        dropped_references=generator.random(num_targets) < policy.drop_reference,
    )


def pick_captions(kinds: np.ndarray, neutral: Sequence[str], full: Sequence[str]) -> tuple[str, ...]:
    """The captions of the given kinds (num,), from the neutral and the full ones of the same clips."""
    if not len(kinds) == len(neutral) == len(full):
        raise InputError(f"expected {len(kinds)} neutral and full captions, got {len(neutral)} and {len(full)}")
    return tuple(("", neutral[index], full[index])[CaptionKind(int(kind))] for index, kind in enumerate(kinds))


def _draw_kinds(
    drop: float, full_share: float, generator: np.random.Generator, count: int, unnamed: np.ndarray | None = None
) -> np.ndarray:
    is_dropped = generator.random(count) < drop
    is_full = generator.random(count) < full_share
    if unnamed is not None:
        if unnamed.shape != (count,):
            raise InputError(f"unnamed must hold one value for each of {count} clips, got shape {unnamed.shape}")
        is_full &= ~unnamed.astype(bool)
    kinds = np.where(is_full, CaptionKind.FULL, CaptionKind.NEUTRAL)
    return np.where(is_dropped, CaptionKind.EMPTY, kinds).astype(np.int8)


@dataclass(frozen=True)
class PairBatch:
    """Indices of items in groups, each of as many references and targets of one condition, one group after the other.

    `references` has shape (num_references * references_per_target,), `targets` (num_references *
    targets_per_reference,); int64.
    """

    references: np.ndarray
    targets: np.ndarray


class PairSampler:
    """Draws pairs from items, each of which shows one condition in one scene.

    Conditions are drawn uniformly, however many items they have, and without repetition as long as there are
    enough. With probability `same_scene_share` the targets of a reference take the scenes of another one's targets
    in the same batch: same pictures, different conditions, so that only the reference determines what happens.

    Items for which `left_out` (item,) is True are never drawn.

    Raises `InputError` for a condition with fewer than `max_references` + 1 scenes, where `max_references` is the
    largest number of references of a target. Raises `RecipeError` for a share that cannot take effect.
    """

    def __init__(
        self,
        conditions_per_item: Sequence[str],
        scenes_per_item: Sequence[str],
        *,
        same_scene_share: float = 0.5,
        max_references: int = 1,
        left_out: np.ndarray | None = None,
    ) -> None:
        if len(conditions_per_item) != len(scenes_per_item) or not len(conditions_per_item):
            raise InputError(
                "pairing needs a condition and a scene for each item, "
                f"got {len(conditions_per_item)} conditions and {len(scenes_per_item)} scenes"
            )
        if not 0.0 <= same_scene_share <= 1.0:
            raise RecipeError(f"same_scene_share must be between 0 and 1, got {same_scene_share}")
        # In large datasets most scenes occur once, and a number takes less memory and time than a list.
        items: dict[str, dict[str, int | list[int]]] = {}
        for index, (condition, scene) in enumerate(zip(conditions_per_item, scenes_per_item, strict=True)):
            if left_out is None or not left_out[index]:
                of_condition = items.setdefault(condition, {})
                found = of_condition.setdefault(scene, index)
                if isinstance(found, list):
                    found.append(index)
                elif found != index:
                    of_condition[scene] = [found, index]
        self.conditions = tuple(sorted(items))
        for condition in self.conditions:
            if len(items[condition]) <= max_references:
                raise InputError(
                    f"condition {condition!r} has {len(items[condition])} scenes, and a target with {max_references} "
                    f"references needs {max_references + 1}; add some or leave it out"
                )
        self._items = [items[condition] for condition in self.conditions]
        self._scenes = [tuple(each) for each in self._items]
        self._share = same_scene_share
        if same_scene_share and not _is_any_shared(self._scenes):
            raise RecipeError("same_scene_share has no effect: no scene was seen under two conditions; set it to 0")

    def draw(
        self,
        generator: np.random.Generator,
        num_references: int,
        targets_per_reference: int = 1,
        references_per_target: int = 1,
    ) -> PairBatch:
        """Draw one batch. The same generator state gives the same batch.

        Args:
            generator: Source of randomness.
            num_references: Number of groups.
            targets_per_reference: Targets of a group.
            references_per_target: References of a group, each in a scene of its own.
        """
        if num_references < 1 or targets_per_reference < 1:
            raise InputError(
                f"a batch needs at least one reference and target, got {num_references} and {targets_per_reference}"
            )
        references: list[int] = []
        targets: list[int] = []
        scenes_drawn: list[tuple[str, ...]] = []
        conditions = self._draw_conditions(generator, num_references)
        for number, condition in enumerate(conditions):
            wanted: tuple[str, ...] = ()
            others = [each for each in range(number) if conditions[each] != condition]
            if others and generator.random() < self._share:
                wanted = scenes_drawn[others[int(generator.integers(len(others)))]]
            own = [self._draw_scene(generator, condition, avoid=wanted)]
            while len(own) < references_per_target:
                scene = self._draw_scene(generator, condition, avoid=wanted)
                own += [] if scene in own else [scene]
            scenes = self._choose_scenes(generator, condition, own, wanted, targets_per_reference)
            references += [self._draw_item(generator, condition, scene) for scene in own]
            targets += [self._draw_item(generator, condition, scene) for scene in scenes]
            scenes_drawn.append(scenes)
        return PairBatch(references=np.array(references, np.int64), targets=np.array(targets, np.int64))

    def _draw_conditions(self, generator: np.random.Generator, count: int) -> list[int]:
        drawn: list[int] = []
        while len(drawn) < count:
            drawn += [int(each) for each in generator.permutation(len(self.conditions))[: count - len(drawn)]]
        return drawn

    def _draw_scene(self, generator: np.random.Generator, condition: int, avoid: Sequence[str]) -> str:
        scenes = self._scenes[condition]
        # Scenes are many and the avoided few, so a few tries nearly always do; then the reference's scene goes first.
        for _ in range(8):
            scene = scenes[int(generator.integers(len(scenes)))]
            if scene not in avoid:
                break
        return scene

    def _choose_scenes(
        self, generator: np.random.Generator, condition: int, own: Sequence[str], wanted: Sequence[str], count: int
    ) -> tuple[str, ...]:
        available = self._items[condition]
        chosen = [scene for scene in wanted if scene in available and scene not in own][:count]
        scenes = self._scenes[condition]
        while len(chosen) < count:
            scene = scenes[int(generator.integers(len(scenes)))]
            is_spare = len(chosen) < len(scenes) - len(own) and scene in chosen
            if scene not in own and not is_spare:
                chosen.append(scene)
        return tuple(chosen)

    def _draw_item(self, generator: np.random.Generator, condition: int, scene: str) -> int:
        items = self._items[condition][scene]
        return items if isinstance(items, int) else items[int(generator.integers(len(items)))]


class HeldOutPairs:
    """Draws pairs of held-out targets and references that are not held out.

    Args:
        conditions: Condition of each item.
        held: Whether each item is held out, (item,); each condition of one that is has others that are not.
    """

    def __init__(self, conditions: Sequence[str], held: np.ndarray) -> None:
        names = np.array(conditions)
        self._choices = [
            (np.flatnonzero((names == name) & ~held), np.flatnonzero((names == name) & held))
            for name in sorted({*names[held].tolist()})
        ]

    def draw(
        self,
        generator: np.random.Generator,
        num_references: int,
        targets_per_reference: int = 1,
        references_per_target: int = 1,
    ) -> PairBatch:
        """Draw one batch, as `PairSampler.draw`; conditions and clips may occur more than once."""
        picked = [self._choices[place] for place in generator.integers(len(self._choices), size=num_references)]
        references = [generator.choice(trained, size=references_per_target) for trained, _ in picked]
        targets = [generator.choice(held, size=targets_per_reference) for _, held in picked]
        return PairBatch(*(np.concatenate(each).astype(np.int64) for each in (references, targets)))


def _is_any_shared(scenes: Sequence[Sequence[str]]) -> bool:
    return sum(map(len, scenes)) > len(set().union(*scenes))
