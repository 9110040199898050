"""The list of conditions, and the rules that keep unseen ones unseen."""

import pytest

from sememe.errors import InputError
from sememe.world import can_show, conditions
from sememe.world.catalogue import CATALOGUE, FAMILIES, SPLITS, condition, parts_of
from sememe.world.scene import random_scene

NAMES = [entry.name for entry in CATALOGUE]


def test_there_are_enough() -> None:
    assert len(conditions()) >= 100
    assert len(conditions(split="unseen")) >= 20
    assert len(conditions(split="novel")) >= 20
    assert all(len(conditions(family=family)) >= 20 for family in FAMILIES)
    assert all(len(conditions(family=family, split="unseen")) >= 5 for family in FAMILIES)


def test_splits_and_families_divide_the_list() -> None:
    assert conditions() == sorted(set(NAMES))
    assert len(NAMES) == len(set(NAMES))
    assert sorted(conditions(split="seen") + conditions(split="unseen")) == conditions()
    assert sorted(name for family in FAMILIES for name in conditions(family=family)) == conditions()


def test_novel_ones_join_two_seen_ones_of_different_families() -> None:
    for name in conditions(split="novel"):
        parts = parts_of(name)
        assert [part.split for part in parts] == ["seen", "seen"]
        assert len({part.family for part in parts}) == 2
    by_family = [name for family in FAMILIES for name in conditions(family=family, split="novel")]
    assert sorted(by_family) == conditions(split="novel")


def test_no_unseen_condition_is_a_seen_one_with_other_numbers() -> None:
    """One function with other arguments (a direction, a colour, an amount) stays within one split."""
    splits: dict[object, set[str]] = {}
    for entry in CATALOGUE:
        splits.setdefault(entry.function, set()).add(entry.split)
    assert not [function for function, found in splits.items() if len(found) > 1]


@pytest.mark.parametrize(("one", "other"), [("left", "right"), ("clockwise", "counterclockwise"), ("_in", "_out")])
def test_mirror_twins_stand_in_one_split(one: str, other: str) -> None:
    twins = [
        (name, name.replace(one, other)) for name in NAMES if name.endswith(one) and name.replace(one, other) in NAMES
    ]
    assert twins
    for first, second in twins:
        assert condition(first).split == condition(second).split


def test_whole_photographs_show_what_needs_no_layers() -> None:
    drawn, photograph = (
        next(scene for scene in map(random_scene, range(99)) if (scene.subject is None) is is_photograph)
        for is_photograph in (False, True)
    )
    assert conditions(scene=drawn) == conditions()
    assert conditions(split="novel", scene=drawn) == conditions(split="novel")
    shown = conditions(scene=photograph)
    assert shown == [entry.name for entry in sorted(CATALOGUE, key=lambda e: e.name) if not entry.needs_layers]
    assert {"flood", "sketch", "zoom_in", "fisheye"} <= set(shown)
    assert not {"melt", "jump", "silhouette", "depth_map", "orbit_left", "heart"} & set(shown)
    assert conditions(split="novel", scene=photograph) == ["fire+rock", "flood+pan_right"]
    assert can_show(photograph, "flood+pan_right")
    assert not can_show(photograph, "melt+zoom_in")


def test_every_phrase_is_its_own() -> None:
    assert len({entry.phrase for entry in CATALOGUE}) == len(CATALOGUE)


def test_unknown_conditions_are_answered_with_near_ones() -> None:
    with pytest.raises(InputError, match=r"unknown condition 'zoom_inn'; did you mean zoom_in"):
        condition("zoom_inn")
    with pytest.raises(InputError, match=r"unknown condition 'xyzzy'; see sememe.world.conditions"):
        parts_of("melt+xyzzy")
    with pytest.raises(InputError, match="name each once"):
        parts_of("melt+melt")
    with pytest.raises(ValueError, match="expected a family of concept, style, motion, camera"):
        conditions(family="styles")
    with pytest.raises(ValueError, match=f"expected a split of {', '.join(SPLITS)}"):
        conditions(split="train")


def test_nothing_is_no_condition() -> None:
    assert parts_of(None) == ()


def test_negative_seeds_are_refused() -> None:
    with pytest.raises(InputError, match="seed of 0 or more, got -1"):
        random_scene(-1)
