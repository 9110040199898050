from collections import Counter

import pytest

from sememe.evaluation.splits import UNSEEN_VALIDATION, condition_groups, split_conditions
from sememe.world import conditions
from sememe.world.catalogue import FAMILIES, condition


def test_the_halves_share_the_unseen_conditions_between_them() -> None:
    chosen, reported = split_conditions("unseen_validation"), split_conditions("unseen")
    assert sorted(chosen + reported) == conditions(split="unseen")
    assert len(set(UNSEEN_VALIDATION)) == len(UNSEEN_VALIDATION)
    assert split_conditions("seen") == conditions(split="seen")
    assert split_conditions(None) == conditions()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_halves_are_balanced(family: str) -> None:
    chosen, reported = (
        sum(condition(name).family == family for name in split_conditions(split))
        for split in ("unseen_validation", "unseen")
    )
    assert abs(chosen - reported) <= 1


def test_mirrored_conditions_are_in_one_half() -> None:
    """What one function of the world does with other arguments is not new to somebody who chose on it."""
    functions = {name: getattr(condition(name).apply, "func", condition(name).apply) for name in conditions()}
    chosen = {functions[name] for name in split_conditions("unseen_validation")}
    assert chosen.isdisjoint(functions[name] for name in split_conditions("unseen"))


def test_groups() -> None:
    assert condition_groups("melt") == ("seen", "concept")
    assert condition_groups("burn") == ("unseen_validation", "concept")
    assert condition_groups("comic") == ("unseen", "style")
    assert condition_groups("melt+zoom_in") == ("novel",)
    assert set(Counter(group for name in conditions() for group in condition_groups(name))) == {
        *("seen", "unseen", "unseen_validation"),
        *FAMILIES,
    }
