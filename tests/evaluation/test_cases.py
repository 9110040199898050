"""Cases are dealt evenly, repeatably, and never share a scene with their reference."""

from collections import Counter

import pytest

from sememe.errors import InputError
from sememe.evaluation.cases import UNSEEN_VALIDATION, SeedRanges, condition_groups, deal_cases, split_conditions
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
    functions = {name: condition(name).function for name in conditions()}
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


RANGES = SeedRanges(1000, 5000, 1000)
NAMES = [f"condition_{index}" for index in range(30)]


def test_the_deal_is_even() -> None:
    cases = deal_cases(NAMES, 200, RANGES, per_scene=8)
    assert len(cases) == 200
    uses = Counter(case.condition for case in cases)
    assert set(uses) == set(NAMES)
    assert max(uses.values()) - min(uses.values()) <= 1
    scenes = Counter(case.scene for case in cases)
    assert len(scenes) == 25
    assert set(scenes.values()) == {8}
    assert len({(case.scene, case.condition) for case in cases}) == 200, "no condition twice in a scene"


def test_seeds_stay_in_their_ranges() -> None:
    cases = deal_cases(NAMES, 100, RANGES)
    assert all(1000 <= case.scene < 2000 for case in cases)
    assert all(5000 <= case.reference_scene < 6000 for case in cases)
    assert len({case.reference_scene for case in cases}) == 100


def test_noise() -> None:
    together = deal_cases(NAMES, 16, RANGES)
    assert len({case.noise_seed for case in together}) == 2
    apart = deal_cases(NAMES, 16, RANGES, same_noise=False)
    assert len({case.noise_seed for case in apart}) == 16


def test_it_is_repeatable_and_depends_on_the_seed() -> None:
    assert deal_cases(NAMES, 40, RANGES, seed=3) == deal_cases(NAMES, 40, RANGES, seed=3)
    assert deal_cases(NAMES, 40, RANGES, seed=3) != deal_cases(NAMES, 40, RANGES, seed=4)


def test_rows_of_one_seed_share_their_scenes() -> None:
    """So that the renders of a scene are made once for several rows."""
    first, second = deal_cases(NAMES, 40, RANGES), deal_cases(NAMES[:12], 40, RANGES)
    assert [case.scene for case in first] == [case.scene for case in second]


def test_few_conditions_make_small_scenes() -> None:
    cases = deal_cases(NAMES[:3], 8, RANGES, per_scene=8)
    assert list(Counter(case.scene for case in cases).values()) == [3, 3, 2]


def test_scenes_and_references_are_dealt_what_they_can_show() -> None:
    def applies(scene: int, name: str) -> bool:
        return scene % 5 > 0 or int(name.removeprefix("condition_")) < 10

    cases = deal_cases(NAMES, 240, RANGES, applies=applies)
    assert all(applies(case.scene, case.condition) and applies(case.reference_scene, case.condition) for case in cases)
    uses = Counter(case.condition for case in cases)
    assert max(uses.values()) - min(uses.values()) <= 2, "the deal stays even"
    only_elsewhere = deal_cases(NAMES[10:], 60, RANGES, applies=applies)
    assert len(only_elsewhere) == 60
    assert all(case.scene % 5 for case in only_elsewhere)


def test_wrong_input() -> None:
    with pytest.raises(InputError, match="expected conditions"):
        deal_cases([], 8, RANGES)
    with pytest.raises(InputError, match="at most 1000 cases"):
        deal_cases(NAMES, 1001, RANGES)
    with pytest.raises(InputError, match="do not overlap"):
        SeedRanges(0, 10, 20)
