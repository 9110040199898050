"""Figures of rows, from made-up verdicts."""

from dataclasses import replace

import pytest

from sememe.errors import InputError
from sememe.evaluation.cases import Case
from sememe.evaluation.grid import GridDifferences
from sememe.evaluation.rows import CaseResult, summarise_row, to_group_table, to_table


def result(scene: int, condition: str, rank: int, noise_seed: int = 0) -> CaseResult:
    nearest = condition if rank == 1 else "other"
    made, true = GridDifferences(3, 1, 4, 2, 3), GridDifferences(2, 1, 2, 2, 4)
    return CaseResult(Case(scene, condition, 99, noise_seed), nearest, rank, 0.1, 20.0 + scene, 0.5, made, true)


def test_figures() -> None:
    results = [result(1, "a", 1), result(1, "b", 1), result(2, "a", 1), result(2, "b", 4), result(3, "a", 9)]
    row = summarise_row(results, 154, lambda name: (name.upper(),))
    assert (row.num_generations, row.num_scenes, row.num_candidates) == (5, 3, 154)
    assert row.accuracy.wilson.value == row.accuracy.scenes.value == 0.6
    assert row.top_5.wilson.value == 0.8
    assert row.both_follow is not None
    assert (row.both_follow.wilson.value, row.both_follow.wilson.count) == (0.5, 2)
    assert row.psnr.value == pytest.approx(21.8)
    assert {group: estimate.value for group, estimate in row.by_group.items()} == {"A": pytest.approx(2 / 3), "B": 0.5}
    assert [(each.expected, each.nearest) for each in row.confusions] == [("a", "other"), ("b", "other")]
    assert (row.grid.tiles.value, row.grid.seams.value, row.grid.flicker.value) == (1.5, 2, 0.75)
    assert "60.0 %" in to_table({"seen": row})
    assert "1.50 (1.50–1.50)" in to_table({"seen": row})
    assert "66.7 %" in to_group_table({"seen": row})


def test_a_pair_follows_only_if_both_do() -> None:
    results = [result(1, "a", 1), result(1, "b", 2), result(2, "a", 2), result(2, "b", 2)]
    row = summarise_row(results, 154)
    assert row.both_follow is not None
    assert row.both_follow.wilson.value == 0


def test_cases_with_different_noise_are_no_pairs() -> None:
    assert summarise_row([result(1, "a", 1, 5), result(1, "b", 1, 6)], 154).both_follow is None


def test_a_misled_result_is_counted_for_the_text() -> None:
    results = [result(1, "a", 1), result(1, "b", 3)]
    assert summarise_row(results, 154).follow_text is None
    told = [replace(entry, told="other") for entry in results]
    row = summarise_row(told, 154)
    assert row.follow_text is not None
    assert (row.follow_text.wilson.value, row.accuracy.wilson.value) == (0.5, 0.5)


def test_nothing_has_no_figures() -> None:
    with pytest.raises(InputError, match="at least one result"):
        summarise_row([], 154)
