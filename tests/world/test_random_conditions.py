"""Random conditions: drawn by number, all different, none of them near an unseen one."""

import numpy as np
import pytest

from sememe.errors import InputError
from sememe.world import can_show, conditions, random_scene, render
from sememe.world.catalogue import CATALOGUE, condition, parts_of
from sememe.world.condition import Condition
from sememe.world.random_conditions import is_near_unseen, random_condition
from sememe.world.take import Take

NAMES = [f"random_{number}" for number in range(60)]
DRAWN = next(scene for scene in map(random_scene, range(99)) if scene.subject is not None)
PHOTOGRAPH = next(scene for scene in map(random_scene, range(99)) if scene.subject is None)


def test_a_number_gives_the_same_condition_always() -> None:
    first, second = (random_condition(7, CATALOGUE) for _ in range(2))
    assert (first.name, first.phrase, first.family) == (second.name, second.phrase, second.family)
    assert condition("random_7").phrase == first.phrase
    one, other = (render(DRAWN, "random_7", num_frames=5, size=32).clip.frames for _ in range(2))
    assert np.array_equal(one, other)


def test_each_shows_something_of_its_own() -> None:
    still = render(DRAWN, None, num_frames=9, size=32).clip.frames.astype(int)
    clips = [render(DRAWN, name, num_frames=9, size=32).clip.frames.astype(int) for name in NAMES]
    for number, clip in enumerate(clips):
        assert np.array_equal(clip[0], still[0])
        assert np.abs(clip - still).mean() > 0.3, NAMES[number]
        assert all(np.abs(clip - other).mean() > 0.3 for other in clips[:number]), NAMES[number]


def test_photographs_show_those_that_need_no_layers() -> None:
    shown = [name for name in NAMES if can_show(PHOTOGRAPH, name)]
    assert 5 < len(shown) < 40
    for name in shown[:8]:
        assert render(PHOTOGRAPH, name, num_frames=3, size=24).clip.frames.shape == (3, 24, 24, 3)


def test_they_are_in_no_list() -> None:
    assert not {*NAMES} & {*conditions(), *conditions(split="novel")}
    assert {condition(name).split for name in NAMES} == {"seen"}
    assert [part.name for part in parts_of("random_3+melt")] == ["random_3", "melt"]


def test_unseen_paths_are_near_themselves_and_random_ones_are_not() -> None:
    moving = [entry for entry in CATALOGUE if entry.split == "unseen" and entry.family in {"motion", "camera"}]
    near = [entry.name for entry in moving if is_near_unseen(entry, CATALOGUE)]
    assert {entry.name for entry in moving} - set(near) == {"fisheye", "iris_out"}, "these move nothing"
    assert not any(is_near_unseen(condition(name), CATALOGUE) for name in NAMES)


def test_the_same_path_a_little_different_is_near() -> None:
    tumble = condition("tumble_left").apply

    def bend(take: Take) -> None:
        tumble(take)
        take.pose.x *= 0.9
        take.pose.rotation *= 1.05

    copy = Condition("copy", "motion", "seen", bend, "", needs_layers=True, function=bend)
    assert is_near_unseen(copy, CATALOGUE)
    assert not is_near_unseen(condition("walk_left"), CATALOGUE)


def test_no_random_part_uses_the_function_of_an_unseen_condition() -> None:
    from sememe.world import random_looks, random_moves

    unseen = {entry.function for entry in CATALOGUE if entry.split == "unseen"}
    used = {value for module in (random_looks, random_moves) for value in vars(module).values() if callable(value)}
    assert not used & unseen


def test_negative_numbers_and_other_names_are_refused() -> None:
    with pytest.raises(InputError, match="random condition to be 0 or more, got -1"):
        random_condition(-1, CATALOGUE)
    for name in ("random_", "random_x", "random_-1"):
        with pytest.raises(InputError, match="unknown condition"):
            condition(name)
