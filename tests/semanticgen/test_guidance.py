"""The table of text and plan guidance."""

import pytest

from sememe.semanticgen.guidance import Variant, planning_guidance, rendering_guidance


def table(*scales: float, texts_differ: bool = True) -> dict[tuple[str, bool], float]:
    rows = rendering_guidance(*scales, texts_differ=texts_differ).rows
    return {(row.variant.text, row.variant.has_plan): row.weight for row in rows}


def test_scales_of_one_turn_guidance_off() -> None:
    assert table(1.0, 1.0) == {("positive", True): 1.0}
    assert table(1.0, 2.0) == {("positive", False): -1.0, ("positive", True): 2.0}


def test_text_guidance_acts_with_the_plan() -> None:
    assert table(3.0, 1.0) == {("negative", True): -2.0, ("positive", True): 3.0}


def test_both_guide() -> None:
    assert table(3.0, 2.0) == {("negative", False): -1.0, ("negative", True): -1.0, ("positive", True): 3.0}


def test_a_plan_scale_of_zero_leaves_the_plan_out() -> None:
    assert table(3.0, 0.0) == {("negative", False): -2.0, ("positive", False): 3.0}
    assert table(1.0, 0.0) == {("positive", False): 1.0}


def test_equal_texts_are_one_row() -> None:
    assert table(3.0, 1.0, texts_differ=False) == {("positive", True): pytest.approx(1.0)}


def test_the_planner_has_text_alone() -> None:
    rows = planning_guidance(2.0).rows
    assert {row.variant: row.weight for row in rows} == {Variant("negative"): -1.0, Variant("positive"): 2.0}
    assert len(planning_guidance(2.0).groups("batched")) == 1
