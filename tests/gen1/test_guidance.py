"""Guidance by time, content and structure: its algebra, and how many predictions it takes."""

import itertools

import pytest
import torch

from sememe.diffusion.guidance import Guidance, combine
from sememe.gen1.guidance import Variant, make_table
from sememe.gen1.settings import Settings

ALONE, TOGETHER, GIVEN = Variant("alone", "none"), Variant("together", "none"), Variant("together", "given")
LEAST = Variant("together", "given", structure="least")
SCALES = (0.0, 0.5, 1.0, 1.2, 7.5)


def gen1_guidance(scale: float, temporal_scale: float, structure_scale: float = 1.0) -> Guidance[Variant]:
    names = ("guidance_scale", "temporal_guidance_scale", "structure_guidance_scale")
    return make_table(Settings().override(**dict(zip(names, (scale, temporal_scale, structure_scale), strict=True))))


def test_it_is_the_sum_of_the_paper() -> None:
    random = torch.Generator().manual_seed(0)
    predictions = {variant: torch.randn(6, generator=random) for variant in (ALONE, TOGETHER, GIVEN)}
    alone, together, given = predictions.values()
    for scale, temporal_scale in itertools.product(SCALES, SCALES):
        rows = gen1_guidance(scale, temporal_scale).rows
        found = combine(rows, [predictions[row.variant] for row in rows])
        expected = alone + temporal_scale * (together - alone) + scale * (given - together)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("scale", "temporal_scale", "expected"),
    [
        (7.5, 1.2, {ALONE, TOGETHER, GIVEN}),
        (7.5, 1.0, {TOGETHER, GIVEN}),
        (1.2, 1.2, {ALONE, GIVEN}),
        (1.0, 1.0, {GIVEN}),
        (0.0, 1.0, {TOGETHER}),
        (0.0, 0.0, {ALONE}),
    ],
)
def test_only_needed_predictions_are_made(scale: float, temporal_scale: float, expected: set[Variant]) -> None:
    assert {row.variant for row in gen1_guidance(scale, temporal_scale).rows} == expected


def test_structure_guidance_adds_what_detail_adds() -> None:
    random = torch.Generator().manual_seed(0)
    predictions = {variant: torch.randn(6, generator=random) for variant in (ALONE, TOGETHER, GIVEN, LEAST)}
    for scale, temporal_scale, structure_scale in itertools.product(SCALES, SCALES, SCALES):
        rows = gen1_guidance(scale, temporal_scale, structure_scale).rows
        found = combine(rows, [predictions[row.variant] for row in rows])
        rows = gen1_guidance(scale, temporal_scale).rows
        without = combine(rows, [predictions[row.variant] for row in rows])
        expected = without + (structure_scale - 1.0) * (predictions[GIVEN] - predictions[LEAST])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_highest_level_has_nothing_to_be_guided_from() -> None:
    settings = Settings().override(structure_guidance_scale=1.5, structure_level=7)
    assert LEAST not in {row.variant for row in make_table(settings).rows}
    assert LEAST in {row.variant for row in make_table(settings.override(structure_level=6)).rows}


def test_variants_of_the_video_model_share_a_forward() -> None:
    groups = gen1_guidance(7.5, 1.2).groups("batched")
    assert [[row.variant for row in group] for group in groups] == [[ALONE], [TOGETHER, GIVEN]]
