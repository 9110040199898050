"""The guidance table: its weights, what is merged, and what is dropped."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.variants import Variant, guide
from sememe.diffusion.guidance import Guidance, GuidanceRow, combine, make_guidance


def test_equal_variants_are_merged_and_what_weighs_nothing_is_dropped() -> None:
    guidance = make_guidance([(Variant("a"), 2.0), (Variant("b"), 0.0), (Variant("a"), -1.5), (Variant("c"), 0.5)])
    assert [(row.variant.letter, row.weight) for row in guidance.rows] == [("a", 0.5), ("c", 0.5)]


def test_rows_of_one_key_are_predicted_together_in_the_order_of_keys() -> None:
    guidance = guide(a=1.0, B=-2.0, c=3.0, D=-1.0)
    assert [[row.variant.letter for row in group] for group in guidance.groups("sequential")] == [*map(list, "aBcD")]
    assert [[row.variant.letter for row in group] for group in guidance.groups("batched")] == [["B", "D"], ["a", "c"]]


def test_the_table_states_the_fields_of_the_variants() -> None:
    assert guide(a=-2.0, b=3.0).to_table() == [{"letter": "a", "weight": -2.0}, {"letter": "b", "weight": 3.0}]


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=5))
def test_a_sum_of_equal_predictions_is_that_prediction(weights: list[float]) -> None:
    guidance = make_guidance(
        [(Variant(letter), weight) for letter, weight in zip("abcde", weights, strict=False)]
        + [(Variant("z"), 1.0 - sum(weights))]
    )
    same = torch.tensor([1.5, -2.0])
    torch.testing.assert_close(combine(guidance.rows, [same] * len(guidance.rows)), same, atol=1e-3, rtol=1e-4)


def test_bad_tables_are_refused() -> None:
    with pytest.raises(AssertionError, match="add up to 1"):
        guide(a=0.5)
    with pytest.raises(AssertionError, match="one row"):
        Guidance((GuidanceRow(Variant("a"), 0.5), GuidanceRow(Variant("a"), 0.5)))
