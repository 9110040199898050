from collections import Counter

import numpy as np
import pytest

from sememe.data.caption_policy import CaptionPolicy
from sememe.data.pairing import CaptionKind, HeldOutPairs, PairSampler, draw_captions, pick_captions
from sememe.errors import InputError, RecipeError

COUNT = 20_000


def test_each_is_dropped_independently_and_as_often_as_asked() -> None:
    policy = CaptionPolicy(drop_target_caption=0.2, drop_reference_caption=0.6, drop_reference=0.1, full_share=0.3)
    choice = draw_captions(policy, np.random.default_rng(0), num_targets=COUNT, num_references=COUNT)
    no_target, no_reference = choice.targets == CaptionKind.EMPTY, choice.references == CaptionKind.EMPTY
    assert no_target.mean() == pytest.approx(0.2, abs=0.02)
    assert no_reference.mean() == pytest.approx(0.6, abs=0.02)
    assert choice.dropped_references.mean() == pytest.approx(0.1, abs=0.02)
    assert (no_target & no_reference).mean() == pytest.approx(0.12, abs=0.02)
    assert (no_target & choice.dropped_references).mean() == pytest.approx(0.02, abs=0.01)
    assert (choice.targets[~no_target] == CaptionKind.FULL).mean() == pytest.approx(0.3, abs=0.02)
    assert (choice.references[~no_reference] == CaptionKind.FULL).mean() == pytest.approx(0.3, abs=0.02)


def test_an_unnamed_condition_is_never_told_and_the_others_draws_stay() -> None:
    policy = CaptionPolicy(drop_target_caption=0.1, full_share=0.9)
    unnamed = np.arange(COUNT) % 2 == 0
    choice = draw_captions(policy, np.random.default_rng(0), num_targets=COUNT, unnamed_targets=unnamed)
    plain = draw_captions(policy, np.random.default_rng(0), num_targets=COUNT)
    assert not (choice.targets[unnamed] == CaptionKind.FULL).any()
    assert np.array_equal(choice.targets[~unnamed], plain.targets[~unnamed])
    assert np.array_equal(choice.targets == CaptionKind.EMPTY, plain.targets == CaptionKind.EMPTY)
    assert choice.references.shape == (0,)


def test_captions_are_picked_by_kind() -> None:
    kinds = np.array([0, 1, 2], np.int8)
    assert pick_captions(kinds, ("n0", "n1", "n2"), ("f0", "f1", "f2")) == ("", "n1", "f2")
    with pytest.raises(InputError, match="expected 3 neutral and full captions, got 1 and 3"):
        pick_captions(kinds, ("n",), ("f0", "f1", "f2"))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected full_share of at most 1, got 1\.5"):
        CaptionPolicy(full_share=1.5)
    with pytest.raises(InputError, match="one value for each of 3"):
        draw_captions(CaptionPolicy(), np.random.default_rng(0), num_targets=3, unnamed_targets=np.zeros(2, bool))


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
        for place, target in enumerate(batch.targets):
            reference = batch.references[place // 3]
            assert CONDITIONS[target] == CONDITIONS[reference]
            assert SCENES[target] != SCENES[reference]
        for targets in batch.targets.reshape(8, 3):
            assert len({SCENES[each] for each in targets}) == 3


def test_several_references_are_of_different_scenes() -> None:
    sampler, generator = PairSampler(CONDITIONS, SCENES, max_references=3), np.random.default_rng(0)
    for _ in range(50):
        batch = sampler.draw(generator, 4, 2, 3)
        for references, targets in zip(batch.references.reshape(4, 3), batch.targets.reshape(4, 2), strict=True):
            assert len({SCENES[each] for each in (*references, *targets)}) == 5
            assert len({CONDITIONS[each] for each in (*references, *targets)}) == 1


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


def test_held_out_targets_have_references_that_are_trained_on() -> None:
    held = np.array([scene == SCENES[0] for scene in SCENES])
    for seed in range(20):
        trained = PairSampler(CONDITIONS, SCENES, left_out=held).draw(np.random.default_rng(seed), 3, 2)
        assert not held[np.concatenate([trained.references, trained.targets])].any()
        pairs = HeldOutPairs(CONDITIONS, held).draw(np.random.default_rng(seed), 3, 2)
        assert held[pairs.targets].all()
        assert not held[pairs.references].any()
        names = np.array(CONDITIONS)
        assert np.array_equal(names[pairs.targets], names[pairs.references].repeat(2))


def test_the_same_generator_state_gives_the_same_batch() -> None:
    first, second = (PairSampler(CONDITIONS, SCENES).draw(np.random.default_rng(5), 6, 2) for _ in range(2))
    assert np.array_equal(first.references, second.references)
    assert np.array_equal(first.targets, second.targets)


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(InputError, match="condition 'b' has 1 scenes, and a target with 1 references needs 2"):
        PairSampler(["a", "a", "b", "b"], ["s", "t", "s", "s"])
    with pytest.raises(RecipeError, match="same_scene_share has no effect"):
        PairSampler(["a", "a", "b", "b"], ["s", "t", "u", "v"])
    with pytest.raises(RecipeError, match="between 0 and 1"):
        PairSampler(CONDITIONS, SCENES, same_scene_share=2.0)
    with pytest.raises(InputError, match="2 conditions and 1 scenes"):
        PairSampler(["a", "a"], ["s"])
    with pytest.raises(InputError, match="at least one reference"):
        PairSampler(CONDITIONS, SCENES).draw(np.random.default_rng(0), 0)
