"""The rows of the evaluation, with a pipeline and a reader of random weights."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from semanticgen.semantic_pipelines import make_pipeline
from sememe.compute.loading_settings import LoadingSettings
from sememe.errors import ModelError
from sememe.evaluation.reader import VOCABULARY, SceneReader
from sememe.semanticgen import evaluation
from sememe.semanticgen.evaluation import LONG, STRICTNESS, Maker, RowSettings, ScriptCase, correlate_paths, list_rows
from sememe.video import Clip, read_image
from sememe.workflows.evaluate import EvaluationSettings, evaluate
from sememe.world import EVALUATION_SEED


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EvaluationSettings:
    folder = tmp_path_factory.mktemp("evaluation")
    make_pipeline().save_pretrained(folder / "model")
    torch.manual_seed(0)
    SceneReader(VOCABULARY, width=4, feature_dim=8, size=16).save_pretrained(folder / "reader")
    return EvaluationSettings(
        system="semanticgen",
        model=str(folder / "model"),
        generations=1,
        settings={"window_seconds": 8.0},  # several windows would go one by one
        options={"reader": str(folder / "reader")},
        loading=LoadingSettings(device="cpu"),
    )


def test_every_row_gives_figures(settings: EvaluationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LENGTHS", 2)
    monkeypatch.setattr(evaluation, "LEVELS", (0.5,))
    output, sheet = tmp_path / "report.json", tmp_path / "sheet.png"
    chosen = ("table", STRICTNESS, LONG)
    report = evaluate(replace(settings, rows=chosen, output=output))
    document = json.loads(output.read_text())
    names = [row.name for row in list_rows(17, 33)]
    assert [*document["rows"]] == names
    assert document["is_complete"]
    cases = {name: row["cases"] for name, row in document["rows"].items()}
    assert all(case["case"]["script"] >= EVALUATION_SEED for each in cases.values() for case in each)
    assert cases["prompt"][0]["case"] == cases["truth"][0]["case"]
    for name in names:
        is_other = [case["case"]["look"] != case["case"]["script"] for case in cases[name]]
        assert is_other == [name == "source" or name.startswith("noise")]
    assert (document["rows"]["long"]["about"]["num_frames"], len(cases["long"][0]["asked_conditions"])) == (33, 2)
    assert all(word in report.to_markdown() for word in (*names, "subject", "drift of contrast"))
    # What is read from a report is what was measured.
    again = evaluate(replace(settings, rows=("truth",), output=output, sheet=sheet)).rows
    assert [(row.results, row.summary) for row in again] == [(row.results, row.summary) for row in report.rows]
    assert read_image(sheet).shape[0] > 180


def test_plans_texts_and_settings_are_those_of_the_row(
    settings: EvaluationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, dict[str, object]] = {}
    make = Maker._generate

    def watched(self: Maker, row: RowSettings, cases: Sequence[ScriptCase]) -> list[Clip]:
        pipeline = self.pipeline

        def called(prompt: object, **given: object) -> object:
            calls[row.name] = {"prompt": prompt, **given}
            return pipeline(prompt, **given)  # type: ignore[arg-type]

        self.pipeline = called  # type: ignore[assignment]
        try:
            return make(self, row, cases)
        finally:
            self.pipeline = pipeline

    monkeypatch.setattr(Maker, "_generate", watched)
    evaluate(replace(settings, rows=("no_plan", "floor", "noise_0.5")))
    assert calls["floor"]["prompt"] == [""] != calls["no_plan"]["prompt"]
    assert "source" not in calls["no_plan"]
    assert len(calls["noise_0.5"]["source"]) == 1  # type: ignore[arg-type]
    changed = {name: given["settings"] for name, given in calls.items()}
    assert changed["no_plan"].guidance.plan_guidance_scale == 0  # type: ignore[attr-defined]
    assert changed["noise_0.5"].plan.plan_noise == 0.5  # type: ignore[attr-defined]
    assert changed["floor"].plan.plan_noise == 0  # type: ignore[attr-defined]


def test_paths_correlate_by_their_movement_alone() -> None:
    true = np.array([[0.2, 0.5], [0.4, 0.5], [0.6, 0.5], [0.8, 0.5]])
    assert correlate_paths(true, 0.5 * true + 0.1) == 1
    assert correlate_paths(true, 1 - true) == -1
    assert correlate_paths(true, np.full_like(true, np.nan)) == 0
    assert correlate_paths(np.full_like(true, 0.5), true) is None
    # Where the truth is hidden nothing is asked; where only the result is, it counts as its mean.
    hidden = np.where(np.arange(4)[:, None] < 1, np.nan, true)
    assert correlate_paths(hidden, true) == 1
    lost = correlate_paths(true, hidden)
    assert lost is not None
    assert 0 < lost < 1


def test_without_a_reader_it_is_said_how_to_get_one(
    settings: EvaluationSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(evaluation, "READER", tmp_path / "none")
    with pytest.raises(ModelError, match="sememe train tiny-reader"):
        evaluate(replace(settings, options={}))
