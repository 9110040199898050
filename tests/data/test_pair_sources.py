import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sememe.data.pair_sources import PairItems, PairSource, make_held_out_pairs
from sememe.data.pair_sources import make_pairs as make_pairs_of
from sememe.data.pairing import PairSampler
from sememe.errors import InputError, RecipeError
from sememe.training.held_out import ItemPicker, choose_held_out_targets

NUM_CONDITIONS, NUM_SCENES = 6, 9
GRID = [(f"c{c}", f"s{s}") for c in range(NUM_CONDITIONS) for s in range(NUM_SCENES)]
CONDITIONS, SCENES = [c for c, _ in GRID], [s for _, s in GRID]
NO_LISTS: list[list[int]] = [[] for _ in GRID]
ONE_BUCKET = [""] * len(GRID)


def make_items(
    conditions: Sequence[str], scenes: Sequence[str], buckets: Sequence[str], references: Sequence[Sequence[int]]
) -> PairItems:
    return PairItems(conditions=conditions, scenes=scenes, buckets=buckets, references=references)


def make_pairs(*lists: Any, **options: Any) -> PairSource:
    return make_pairs_of(make_items(*lists), **options)


def test_a_target_gets_one_of_the_references_that_it_lists() -> None:
    # Items 0 to 4 of condition a; 3 lists none. Of b nobody lists any.
    lists = [[1, 2], [0], [0, 1], [], [1], [], [], []]
    conditions, scenes = ["a"] * 5 + ["b"] * 3, [f"s{number}" for number in range(8)]
    source = make_pairs(conditions, scenes, [""] * 8, lists, same_scene_share=0.0)
    generator, pairs = np.random.default_rng(3), set()
    for _ in range(300):
        batch = source.draw(generator, 2, 2)
        pairs |= {(int(target), int(batch.references[place // 2])) for place, target in enumerate(batch.targets)}
    allowed = {(target, reference) for target, listed in enumerate(lists) for reference in listed}
    free = {(3, reference) for reference in (0, 1, 2, 4)}
    assert pairs == allowed | free | {(target, reference) for target in (5, 6, 7) for reference in {5, 6, 7} - {target}}


def test_every_target_of_a_group_lists_all_of_its_references() -> None:
    # Items 0 and 1 list the same two, 2 and 3 only one of these each, 4 and 5 list none.
    lists = [[6, 7], [6, 7], [6], [7], [], [], [], []]
    items = make_items(["a"] * 8, [f"s{number}" for number in range(8)], [""] * 8, lists)
    source = make_pairs_of(replace(items, max_references=2), same_scene_share=0.0)
    generator, shown = np.random.default_rng(2), Counter[int]()
    for _ in range(300):
        batch = source.draw(generator, 1, 2, 2)
        references = set(batch.references.tolist())
        for target in batch.targets.tolist():
            assert references <= set(lists[target]) if lists[target] else target not in references
        shown.update(batch.targets.tolist())
    assert sorted(shown) == list(range(8))


def test_targets_of_a_listed_reference_take_the_scenes_of_another_condition() -> None:
    lists = [[(index + 1) % NUM_SCENES + index // NUM_SCENES * NUM_SCENES] for index in range(len(GRID))]
    source = make_pairs(CONDITIONS, SCENES, ONE_BUCKET, lists, same_scene_share=1.0)
    batch = source.draw(np.random.default_rng(0), 4)
    assert len({SCENES[target] for target in batch.targets}) == 1
    assert [lists[target] for target in batch.targets] == [[reference] for reference in batch.references]


def test_a_batch_is_of_one_bucket_and_all_items_are_drawn() -> None:
    buckets = ["wide" if index % 3 else "tall" for index in range(len(GRID))]
    source = make_pairs(CONDITIONS, SCENES, buckets, NO_LISTS, same_scene_share=0.5)
    items = ItemPicker(SCENES, buckets)
    generator, drawn = np.random.default_rng(4), Counter[int]()
    for _ in range(200):
        batch, picked = source.draw(generator, 3, 2), items.draw(generator, 5)
        assert len({buckets[index] for index in (*batch.references, *batch.targets)}) == 1
        assert len({buckets[index] for index in picked}) == 1
        for place, target in enumerate(batch.targets):
            assert CONDITIONS[target] == CONDITIONS[batch.references[place // 2]]
        drawn.update(picked.tolist())
    assert len(drawn) == len(GRID)
    assert sum(drawn[index] for index in range(0, len(GRID), 3)) == pytest.approx(1000 / 3, rel=0.25)


def test_references_of_another_bucket_are_not_shown() -> None:
    buckets = ["wide"] * 3 + ["tall"] * 3
    source = make_pairs(["a"] * 6, list("stuvwx"), buckets, [[1, 4], [], [], [0], [], []], same_scene_share=0.0)
    generator = np.random.default_rng(0)
    pairs = {
        tuple(np.concatenate([batch.targets, batch.references]).tolist())
        for batch in (source.draw(generator, 1) for _ in range(200))
    }
    wide = {(0, 1), (1, 0), (1, 2), (2, 0), (2, 1)}
    assert pairs == wide | {(target, reference) for target in (3, 4, 5) for reference in {3, 4, 5} - {target}}


def test_one_bucket_without_lists_is_as_none() -> None:
    plain = PairSampler(CONDITIONS, SCENES).draw(np.random.default_rng(5), 6, 2)
    same = make_pairs(CONDITIONS, SCENES, ONE_BUCKET, NO_LISTS, same_scene_share=0.5).draw(
        np.random.default_rng(5), 6, 2
    )
    assert np.array_equal(plain.references, same.references)
    assert np.array_equal(plain.targets, same.targets)
    picked = ItemPicker(list("abcdefg"), [""] * 7).draw(np.random.default_rng(6), 9)
    assert np.array_equal(picked, np.random.default_rng(6).integers(7, size=9))


def test_a_condition_needs_two_scenes_in_a_bucket(caplog: pytest.LogCaptureFixture) -> None:
    conditions, scenes, buckets = ["a", "a", "a", "b", "b"], ["s", "t", "u", "s", "t"], ["x", "x", "y", "y", "y"]
    with caplog.at_level(logging.WARNING):
        source = make_pairs(conditions, scenes, buckets, [[]] * 5, same_scene_share=0.0)
    assert caplog.messages == ["left out of bucket y, because 2 scenes are needed: a"]
    generator = np.random.default_rng(0)
    assert {int(source.draw(generator, 1).references[0]) for _ in range(60)} == {0, 1, 3, 4}
    with pytest.raises(RecipeError, match="same_scene_share has no effect"):
        make_pairs(conditions, scenes, buckets, [[]] * 5, same_scene_share=0.5)
    with pytest.raises(InputError, match="no condition has 2 scenes in one bucket"):
        make_pairs(["a", "a"], ["s", "t"], ["x", "y"], [[], []], same_scene_share=0.0)


def test_held_out_targets_are_shown_with_listed_references_of_their_bucket_that_are_trained_on() -> None:
    buckets = ["wide" if index % 3 else "tall" for index in range(len(GRID))]
    lists = [[index // NUM_SCENES * NUM_SCENES + scene for scene in range(6)] for index in range(len(GRID))]
    lists[0] = lists[1] = []
    items = make_items(CONDITIONS, SCENES, buckets, lists)
    held = choose_held_out_targets(SCENES, items.groups)
    trained, other = make_pairs_of(items, same_scene_share=0.5, left_out=held), make_held_out_pairs(items, held)
    generator = np.random.default_rng(0)
    for _ in range(100):
        one, two = trained.draw(generator, 2, 2), other.draw(generator, 2, 2)
        assert not held[np.concatenate([one.references, one.targets, two.references])].any()
        assert held[two.targets].all()
        for batch in (one, two):
            assert len({buckets[index] for index in (*batch.references, *batch.targets)}) == 1
            for place, target in enumerate(batch.targets.tolist()):
                reference = int(batch.references[place // 2])
                assert CONDITIONS[target] == CONDITIONS[reference]
                assert reference in lists[target] or not set(lists[target]) - {target}
