import numpy as np
import pytest

from sememe.data.caption_policy import CaptionKind, CaptionPolicy, draw_captions, pick_captions
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
    with pytest.raises(RecipeError, match=r"full_share must be between 0 and 1, got 1\.5"):
        CaptionPolicy(full_share=1.5)
    with pytest.raises(InputError, match="one value for each of 3"):
        draw_captions(CaptionPolicy(), np.random.default_rng(0), num_targets=3, unnamed_targets=np.zeros(2, bool))
