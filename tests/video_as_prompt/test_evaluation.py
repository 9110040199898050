"""What the rows of the evaluation show, and what is counted of their results."""

from pathlib import Path

import numpy as np
import pytest

from sememe.evaluation.metrics import GridDifferences
from sememe.evaluation.rows import CaseResult
from sememe.evaluation.runner import choose_rows
from sememe.video import Clip
from sememe.video_as_prompt.evaluation import (
    Maker,
    PromptedCase,
    build_row,
    deal_row,
    list_rows,
    paste_changes,
    summarise,
)
from video_as_prompt.pipeline_factories import make_pipeline


def test_references_are_lossy_files_of_another_scene(tmp_path: Path) -> None:
    pipeline = make_pipeline()
    maker, row = Maker(pipeline, pipeline.defaults, tmp_path), list_rows(pipeline)[0]
    case = PromptedCase(10_000_000, "melt", 20_000_000, 1)
    clip = maker.reference(row, case, 3)
    exact = maker.oracles(row).film(20_000_000, "melt")
    assert (tmp_path / "reference_3.mp4").exists()
    assert clip.frames.shape == exact.frames.shape
    difference = np.abs(clip.frames.astype(int) - exact.frames).mean()
    assert 0 < difference < 12


def test_paste_changes() -> None:
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    frames[0], frames[1], frames[2] = 100, 160, 20
    result = paste_changes(np.full((2, 2, 3), 200, np.uint8), Clip(frames, 8))
    assert [int(frame[0, 0, 0]) for frame in result.frames] == [200, 255, 120]


def test_rows_for_choosing_share_nothing_with_the_others() -> None:
    pipeline = make_pipeline()
    maker = Maker(pipeline, pipeline.defaults, Path())
    rows = [build_row(row, maker, deal_row(row, 50, 8, 0)) for row in list_rows(pipeline)]
    choosing, table = choose_rows(rows, ("validation",)), choose_rows(rows, None)
    assert [row.name for row in choosing] == ["seen_validation", "unseen_validation"]
    assert {row.name for row in choosing}.isdisjoint(row.name for row in table)
    chosen, reported = ([case for row in some for case in row.cases] for some in (choosing, table))
    for scene in ("scene", "reference_scene"):
        assert {getattr(case, scene) for case in chosen}.isdisjoint(getattr(case, scene) for case in reported)
    by_name = {row.name: row for row in rows}
    unseen = {case.condition for case in by_name["unseen_validation"].cases}
    assert unseen.isdisjoint(case.condition for case in by_name["unseen"].cases)
    assert by_name["paste"].cases == by_name["unseen"].cases


def result(scene: int, condition: str, rank: int, noise_seed: int = 0, named: str | None = None) -> CaseResult:
    nearest = condition if rank == 1 else "other"
    same = GridDifferences(1, 1, 1, 1, 1)
    return CaseResult(PromptedCase(scene, condition, 99, noise_seed, named), nearest, rank, 0.1, 20.0, 0.5, same, same)


@pytest.mark.parametrize(("ranks", "share"), [((1, 1, 1, 4), 0.5), ((1, 2, 2, 2), 0.0), ((1, 1, 1, 1), 1.0)])
def test_a_pair_follows_only_if_both_do(ranks: tuple[int, ...], share: float) -> None:
    places = [(1, "melt"), (1, "night"), (2, "melt"), (2, "night")]
    row = summarise(154, [result(*place, rank) for place, rank in zip(places, ranks, strict=True)])
    assert row.shares["both_follow"] is not None
    assert (row.shares["both_follow"].wilson.value, row.shares["both_follow"].wilson.count) == (share, 2)
    assert row.shares["follow_text"] is None


def test_cases_with_different_noise_are_no_pairs() -> None:
    results = [result(1, "melt", 1, 5), result(1, "night", 1, 6), result(1, "rain", 1, 7)]
    assert summarise(154, results).shares["both_follow"] is None
