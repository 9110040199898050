from collections import Counter

import numpy as np
import pytest

from sememe.data.pairing import PairSampler
from sememe.errors import InputError, RecipeError

NUM_CONDITIONS, NUM_SCENES = 6, 9
GRID = [(f"c{c}", f"s{s}") for c in range(NUM_CONDITIONS) for s in range(NUM_SCENES)]
CONDITIONS, SCENES = [c for c, _ in GRID], [s for _, s in GRID]


def test_a_pair_has_one_condition_and_two_scenes() -> None:
    sampler = PairSampler(CONDITIONS, SCENES)
    generator = np.random.default_rng(0)
    for _ in range(200):
        batch = sampler.draw(generator, 8, 3)
        assert batch.references.shape == (8,)
        assert batch.targets.shape == (24,)
        assert batch.targets_per_reference == 3
        for place, target in enumerate(batch.targets):
            reference = batch.references[place // 3]
            assert CONDITIONS[target] == CONDITIONS[reference]
            assert SCENES[target] != SCENES[reference]
        for targets in batch.targets.reshape(8, 3):
            assert len({SCENES[each] for each in targets}) == 3


def share_with_other_conditions(share: float) -> float:
    sampler = PairSampler(CONDITIONS, SCENES, same_scene_share=share)
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        batch = sampler.draw(generator, 2, 4)
        first, second = ({SCENES[each] for each in targets} for targets in batch.targets.reshape(2, 4))
        assert CONDITIONS[batch.references[0]] != CONDITIONS[batch.references[1]]
        hits += first == second
    return hits / 300


def test_targets_take_the_scenes_of_another_condition_as_often_as_asked() -> None:
    assert share_with_other_conditions(1.0) > 0.97
    assert 0.4 < share_with_other_conditions(0.5) < 0.6
    assert share_with_other_conditions(0.0) < 0.05


def test_conditions_are_drawn_evenly_however_many_items_they_have() -> None:
    conditions = ["rare"] * 2 + ["common"] * 200 + ["usual"] * 20
    sampler = PairSampler(conditions, [str(each) for each in range(222)], same_scene_share=0.0)
    generator = np.random.default_rng(2)
    counts = Counter(conditions[sampler.draw(generator, 1).references[0]] for _ in range(900))
    assert all(250 < counts[name] < 350 for name in ("rare", "common", "usual"))
    drawn = Counter(conditions[each] for each in sampler.draw(generator, 7).references)
    assert sorted(drawn.values()) == [2, 2, 3]


def test_two_scenes_are_enough_for_many_targets() -> None:
    sampler = PairSampler(["a", "a"], ["s", "t"], same_scene_share=0.0)
    batch = sampler.draw(np.random.default_rng(0), 1, 4)
    assert set(batch.targets) == {1 - batch.references[0]}


def test_the_same_generator_state_gives_the_same_batch() -> None:
    first, second = (PairSampler(CONDITIONS, SCENES).draw(np.random.default_rng(5), 6, 2) for _ in range(2))
    assert np.array_equal(first.references, second.references)
    assert np.array_equal(first.targets, second.targets)


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(InputError, match="condition 'b' has one scene only"):
        PairSampler(["a", "a", "b", "b"], ["s", "t", "s", "s"])
    with pytest.raises(RecipeError, match="same_scene_share has no effect"):
        PairSampler(["a", "a", "b", "b"], ["s", "t", "u", "v"])
    with pytest.raises(RecipeError, match="between 0 and 1"):
        PairSampler(CONDITIONS, SCENES, same_scene_share=2.0)
    with pytest.raises(InputError, match="2 conditions and 1 scenes"):
        PairSampler(["a", "a"], ["s"])
    with pytest.raises(InputError, match="at least one reference"):
        PairSampler(CONDITIONS, SCENES).draw(np.random.default_rng(0), 0)
