"""The evaluation of Gen-1: what is dealt, how clips are judged, and its rows on a model that takes seconds."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gen1.model_factories import make_motion_pipeline, make_pipeline
from gen1.smoke_chain import gen1_runs
from sememe.errors import InputError, ModelError
from sememe.evaluation.metrics import PSNR_LIMIT
from sememe.gen1.evaluation import NUM_LOOKS, ROWS, Maker, build_rows, correlate, deal_looks, read_result, summarise
from sememe.gen1.pipeline import Gen1Pipeline
from sememe.gen1.structure import DepthEstimator
from sememe.workflows.evaluate import EvaluationSettings, evaluate
from sememe.world import EVALUATION_SEED, can_show


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gen1_runs(tmp_path_factory.getbasetemp()) / "model"


@pytest.fixture(scope="module")
def maker(model: Path) -> Maker:
    pipeline = Gen1Pipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    estimator = DepthEstimator(pipeline.depth_estimator, pipeline.depth_processor)
    return Maker(pipeline, pipeline.defaults, estimator)


def test_cases_are_scenes_that_training_never_saw() -> None:
    cases = deal_looks(9, 4, seed=1)
    assert deal_looks(9, 4, seed=1) == cases != deal_looks(9, 4, seed=2)
    assert [
        len({case.look for case in cases if case.scene == scene}) for scene in dict.fromkeys(c.scene for c in cases)
    ] == [4, 4, 1]
    for case in cases:
        assert case.scene >= EVALUATION_SEED
        assert can_show(case.paint(case.look), case.condition)
        assert case.paint(case.look).subject is not None
        assert case.first_look < case.look < case.first_look + NUM_LOOKS


def test_correlation_knows_neither_scale_nor_shift() -> None:
    values = np.random.default_rng(0).normal(size=(2, 3, 4))
    assert correlate(3 * values + 5, values) == pytest.approx(1.0)
    assert correlate(-values, values) == pytest.approx(-1.0)
    assert correlate(np.ones_like(values), values) == 0.0


def test_the_truth_is_right_and_the_source_is_its_own_look(maker: Maker) -> None:
    (case,) = deal_looks(1, 1, seed=0)
    row = ROWS[0]
    truth = maker.judge(row, case, maker.truth(case).clip)
    assert (truth.rank, truth.nearest, truth.psnr) == (1, case.look, PSNR_LIMIT)
    source = maker.judge(row, case, maker.source(case).clip)
    assert source.nearest == case.first_look
    assert (maker.truth(case).depth == maker.source(case).depth).all()
    summary = summarise([truth, source])
    assert summary.accuracy is not None
    assert summary.accuracy.value == 0.5
    assert summarise([truth], has_truth=False).to_cells()["content"] is None


def test_a_mirrored_picture_has_the_same_look_and_another_geometry(maker: Maker) -> None:
    (case,) = deal_looks(1, 1, seed=0)
    rows = {row.name: row for row in ROWS}
    own, mirrored = (maker.content(rows[name], case) for name in ("picture", "mirrored"))
    assert (mirrored[:, ::-1] == own).all()
    assert (mirrored != own).any()


def test_a_model_that_cannot_be_judged_is_refused_before_rows_are_made(tmp_path: Path) -> None:
    for pipeline in (
        make_pipeline(tmp_path, depth_estimator=None),
        make_pipeline(tmp_path, prior=None, image_encoder=None),
        make_motion_pipeline(tmp_path),
    ):
        with pytest.raises(ModelError, match="a Gen1UNet, an image_encoder and a depth_estimator"):
            build_rows(pipeline, pipeline.defaults, tmp_path, generations=1, per_scene=1, seed=0)


def test_all_kinds_of_rows_are_measured_and_read_again(model: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"system": "gen1", "model": str(model), "output": tmp_path / "report.json"}
    rows = ("text", "mirrored", "other_scene", "sdedit", "source", "ceiling")
    report = evaluate(EvaluationSettings(generations=1, rows=rows, **given))
    found = {row.name: row.results[0] for row in report.rows}
    assert list(found) == list(rows)
    case = found["source"].case
    assert found["source"].nearest == case.first_look
    assert found["ceiling"].psnr > found["source"].psnr
    document = json.loads((tmp_path / "report.json").read_text())
    assert {name: read_result(row["cases"][0]) for name, row in document["rows"].items()} == found


def test_a_judge_may_be_moved_and_not_replaced(model: Path, tmp_path: Path) -> None:
    judges = [tmp_path / name for name in ("judge", "moved")]
    for name in ("depth_estimator", "depth_processor"):
        shutil.copytree(model / name, judges[0] / name)
    given: dict[str, Any] = {"system": "gen1", "model": str(model), "output": tmp_path / "report.json"}
    settings = EvaluationSettings(generations=1, rows=("source",), options={"depth": str(judges[0])}, **given)
    found = evaluate(settings).rows[0].results
    judges[0].rename(judges[1])
    settings = replace(settings, options={"depth": str(judges[1])})
    assert evaluate(settings).rows[0].results == found
    (judges[1] / "depth_processor" / "more.json").write_text("{}")
    with pytest.raises(InputError, match="another depth"):
        evaluate(settings)
