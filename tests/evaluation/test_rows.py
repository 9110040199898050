"""Figures of rows, from made-up verdicts."""

import json
from dataclasses import asdict

import pytest

from sememe.errors import InputError
from sememe.evaluation.cases import Case
from sememe.evaluation.metrics import GridDifferences
from sememe.evaluation.rows import CaseResult, estimate_share, read_result, summarise_row


def result(scene: int, condition: str, rank: int, noise_seed: int = 0) -> CaseResult:
    nearest = condition if rank == 1 else "other"
    made, true = GridDifferences(3, 1, 4, 2, 3), GridDifferences(2, 1, 2, 2, 4)
    return CaseResult(Case(scene, condition, 99, noise_seed), nearest, rank, 0.1, 20.0 + scene, 0.5, made, true)


def test_figures() -> None:
    results = [result(1, "a", 1), result(1, "b", 1), result(2, "a", 1), result(2, "b", 4), result(3, "a", 9)]
    shares = {"both_right": estimate_share([True], [1]), "told": None}
    row = summarise_row(results, 154, lambda name: (name.upper(),), shares)
    assert (row.num_generations, row.num_scenes, row.num_candidates) == (5, 3, 154)
    assert row.accuracy.wilson.value == row.accuracy.scenes.value == 0.6
    assert row.top_5.wilson.value == 0.8
    assert row.psnr.value == pytest.approx(21.8)
    assert {group: estimate.value for group, estimate in row.by_group.items()} == {"A": pytest.approx(2 / 3), "B": 0.5}
    assert [(each.expected, each.nearest) for each in row.confusions] == [("a", "other"), ("b", "other")]
    assert (row.grid.tiles.value, row.grid.seams.value, row.grid.flicker.value) == (1.5, 2, 0.75)
    cells = row.to_cells()
    assert cells["oracle accuracy"].startswith("60.0 %")
    assert cells["tiles"] == "1.50 (1.50–1.50)"
    assert (cells["both right"], cells["told"]) == ("100.0 % (20.7–100.0)", None)


def test_a_saved_result_is_read_again() -> None:
    first = result(1, "a", 3)
    assert read_result(json.loads(json.dumps(asdict(first)))) == first


def test_nothing_has_no_figures() -> None:
    with pytest.raises(InputError, match="at least one result"):
        summarise_row([], 154)
