"""The guidance table: its weights, what is merged, and what is dropped."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sememe.diffusion.guidance import Guidance, GuidanceRow, Variant, combine, make_guidance, video_as_prompt_guidance
from sememe.errors import InputError

PLAIN_NEGATIVE = Variant("negative", "none")
SEEN_NEGATIVE = Variant("negative", "given")
SEEN_POSITIVE = Variant("positive", "given")
PLAIN_POSITIVE = Variant("positive", "none")


def weights_of(guidance: Guidance) -> dict[Variant, float]:
    return {row.variant: row.weight for row in guidance.rows}


def test_three_way_weights() -> None:
    guidance = video_as_prompt_guidance(guidance_scale=5.0, reference_guidance_scale=3.0)
    assert weights_of(guidance) == {PLAIN_NEGATIVE: -2.0, SEEN_NEGATIVE: -2.0, SEEN_POSITIVE: 5.0}
    assert guidance.needs_reference


@pytest.mark.parametrize(
    ("text_scale", "reference_scale", "texts_differ", "expected"),
    [
        (1.0, 1.0, True, {SEEN_POSITIVE: 1.0}),
        (1.0, 1.0, False, {SEEN_POSITIVE: 1.0}),
        (5.0, 1.0, True, {SEEN_NEGATIVE: -4.0, SEEN_POSITIVE: 5.0}),
        (5.0, 1.0, False, {SEEN_POSITIVE: 1.0}),
        (1.0, 4.0, True, {PLAIN_NEGATIVE: -3.0, SEEN_NEGATIVE: 3.0, SEEN_POSITIVE: 1.0}),
        (1.0, 4.0, False, {PLAIN_POSITIVE: -3.0, SEEN_POSITIVE: 4.0}),
        (7.0, 4.0, False, {PLAIN_POSITIVE: -3.0, SEEN_POSITIVE: 4.0}),
        (4.0, 4.0, True, {PLAIN_NEGATIVE: -3.0, SEEN_POSITIVE: 4.0}),
        (0.0, 2.0, True, {PLAIN_NEGATIVE: -1.0, SEEN_NEGATIVE: 2.0}),
        (1.0, 0.0, True, {PLAIN_POSITIVE: 1.0}),
        (3.0, 0.0, True, {PLAIN_NEGATIVE: -2.0, PLAIN_POSITIVE: 3.0}),
        (3.0, 0.0, False, {PLAIN_POSITIVE: 1.0}),
    ],
)
def test_rows_are_merged_and_dropped(
    text_scale: float, reference_scale: float, texts_differ: bool, expected: dict[Variant, float]
) -> None:
    guidance = video_as_prompt_guidance(text_scale, reference_scale, texts_differ=texts_differ)
    assert weights_of(guidance) == pytest.approx(expected)
    assert guidance.needs_reference == (reference_scale != 0)


@given(st.floats(0, 20), st.floats(0, 20), st.booleans())
def test_weights_add_up_to_one(text_scale: float, reference_scale: float, texts_differ: bool) -> None:
    guidance = video_as_prompt_guidance(text_scale, reference_scale, texts_differ=texts_differ)
    assert sum(row.weight for row in guidance.rows) == pytest.approx(1.0, abs=1e-6)
    assert 1 <= len(guidance.rows) <= 3
    same = torch.tensor([1.5, -2.0])
    torch.testing.assert_close(combine(guidance.rows, [same] * len(guidance.rows)), same, atol=1e-4, rtol=1e-4)


def test_the_sum_is_the_formula() -> None:
    torch.manual_seed(0)
    predictions = {variant: torch.randn(3) for variant in (PLAIN_NEGATIVE, SEEN_NEGATIVE, SEEN_POSITIVE)}
    plain, seen, told = predictions.values()
    guidance = video_as_prompt_guidance(5.0, 3.0)
    total = combine(guidance.rows, [predictions[row.variant] for row in guidance.rows])
    torch.testing.assert_close(total, plain + 3.0 * (seen - plain) + 5.0 * (told - seen))


def test_a_negative_reference_takes_the_place_of_the_backbone() -> None:
    guidance = video_as_prompt_guidance(1.0, 4.0, texts_differ=False, null_reference="negative")
    assert weights_of(guidance) == {Variant("positive", "negative"): -3.0, SEEN_POSITIVE: 4.0}
    assert [len(group) for group in guidance.groups("batched")] == [1, 1]


def test_grouping_keeps_every_row() -> None:
    guidance = video_as_prompt_guidance(5.0, 3.0)
    assert [len(group) for group in guidance.groups("sequential")] == [1, 1, 1]
    assert [[row.variant for row in group] for group in guidance.groups("batched")] == [
        [PLAIN_NEGATIVE],
        [SEEN_NEGATIVE, SEEN_POSITIVE],
    ]
    assert guidance.to_table()[0] == {"text": "negative", "reference": "none", "weight": -2.0}


def test_bad_scales_and_bad_tables_are_refused() -> None:
    for scales in ((-1.0, 1.0), (1.0, -0.5), (float("nan"), 1.0), (1.0, float("inf"))):
        with pytest.raises(InputError, match="at least 0"):
            video_as_prompt_guidance(*scales)
    with pytest.raises(AssertionError, match="add up to 1"):
        make_guidance([(SEEN_POSITIVE, 0.5)])
    with pytest.raises(AssertionError, match="one row"):
        Guidance((GuidanceRow(SEEN_POSITIVE, 0.5), GuidanceRow(SEEN_POSITIVE, 0.5)))
