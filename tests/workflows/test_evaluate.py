"""The evaluation from end to end, with a tiny random model: figures mean nothing, but all must fit together."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sememe.compute.loading_settings import LoadingSettings
from sememe.errors import InputError, OutputError
from sememe.evaluation.rows import RowSummary
from sememe.events import Progress
from sememe.video import Clip, read_image
from sememe.video_as_prompt.evaluation import Maker, PromptedCase, RowSettings, scene_oracles
from sememe.workflows.evaluate import EvaluationSettings, evaluate
from sememe.world import random_scene
from sememe.world.captions import full_caption
from sememe.world.catalogue import parts_of
from video_as_prompt.pipeline_factories import make_pipeline

CPU = LoadingSettings(device="cpu")
CANDIDATES = ["melt", "zoom_in", "night", "burn"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def settings(model: Path, monkeypatch: pytest.MonkeyPatch) -> EvaluationSettings:
    """Four candidates instead of all, so that a scene is filmed in no time."""
    monkeypatch.setattr(RowSettings, "candidates", property(lambda _: CANDIDATES))
    monkeypatch.setattr(RowSettings, "conditions", property(lambda _: CANDIDATES))
    scene_oracles.cache_clear()
    return EvaluationSettings(model=str(model), generations=4, per_scene=4, rows=("seen",), batch_size=4, loading=CPU)


def ranks(path: Path, row: str) -> list[tuple[str, int]]:
    cases = json.loads(path.read_text())["rows"][row]["cases"]
    return [(case["nearest"], case["rank"]) for case in cases]


def test_every_row_gives_figures(settings: EvaluationSettings, tmp_path: Path) -> None:
    measured = ("seen", "unseen", "novel", "sensitivity", "misled", "floor", "paste", "ceiling")
    names = (*measured, "shorter", "longer", "wide")
    output, sheet = tmp_path / "report.json", tmp_path / "sheet.png"
    seen: list[Progress] = []
    report = evaluate(
        replace(settings, rows=None, generations=2, output=output, sheet=sheet, num_examples=1), seen.append
    )
    document = json.loads(output.read_text())
    assert tuple(document["rows"]) == names == tuple(row.name for row in report.rows)
    assert document == json.loads(json.dumps(report.to_document()))
    assert document["is_complete"]
    assert document["identity"]["world_version"] == 2
    for name, row in document["rows"].items():
        summary = row["summary"]
        assert len(row["cases"]) == summary["num_generations"] == 2
        cases = [result["case"] for result in row["cases"]]
        assert {case["condition"] for case in cases} < set(CANDIDATES)
        assert all(case["scene"] >= 10_000_000 and case["reference_scene"] >= 20_000_000 for case in cases)
        assert (summary["shares"]["both_follow"] is None) == (name == "floor")
        assert summary["accuracy"]["wilson"]["count"] == 2
    shapes = {name: (row["about"]["num_frames"], row["about"]["width"]) for name, row in document["rows"].items()}
    assert shapes["seen"] == (5, 48)
    assert (shapes["shorter"][0], shapes["longer"][0], shapes["wide"]) == (5, 9, (5, 72))
    assert {progress.stage for progress in seen} == set(names)
    assert seen[-1].seconds_left == 0
    assert all(name in report.to_markdown() for name in names)
    assert read_image(sheet).shape[0] > 1000


def test_results_do_not_depend_on_the_batch(settings: EvaluationSettings, tmp_path: Path) -> None:
    files = [tmp_path / "one.json", tmp_path / "four.json"]
    for path, size in zip(files, (1, 4), strict=True):
        evaluate(replace(settings, batch_size=size, output=path))
    assert ranks(files[0], "seen") == ranks(files[1], "seen")


def test_a_broken_off_run_is_continued(
    settings: EvaluationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    evaluate(replace(settings, batch_size=2, output=whole))
    made: list[int] = []
    make = Maker.make

    def breaking(self: Maker, row: RowSettings, cases: tuple[PromptedCase, ...]) -> list[Clip]:
        if len(made) == 1:
            made.append(0)
            raise KeyboardInterrupt
        made.append(len(cases))
        return make(self, row, cases)

    monkeypatch.setattr(Maker, "make", breaking)
    with pytest.raises(KeyboardInterrupt):
        evaluate(replace(settings, batch_size=2, output=parts))
    assert len(ranks(parts, "seen")) == 2
    assert not json.loads(parts.read_text())["is_complete"]
    evaluate(replace(settings, batch_size=2, output=parts))
    assert made == [2, 0, 2], "only what was missing is made"
    assert ranks(parts, "seen") == ranks(whole, "seen")


def test_rows_of_an_earlier_run_stay(settings: EvaluationSettings, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    evaluate(replace(settings, rows=("paste",), output=output))
    first = ranks(output, "paste")
    evaluate(replace(settings, rows=("ceiling",), output=output))
    assert ranks(output, "paste") == first
    assert len(ranks(output, "ceiling")) == 4


def test_a_report_of_other_settings_is_refused(settings: EvaluationSettings, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    evaluate(replace(settings, rows=("paste",), output=output))
    with pytest.raises(InputError, match="another seed"):
        evaluate(replace(settings, rows=("paste",), output=output, seed=1))
    output.write_text('{"hello": 1}')
    with pytest.raises(InputError, match="no report of an evaluation"):
        evaluate(replace(settings, output=output))
    assert output.read_text() == '{"hello": 1}'


def test_the_true_target_is_recognised(settings: EvaluationSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ceiling row with an autoencoder that loses nothing."""
    monkeypatch.setattr("sememe.video_as_prompt.evaluation.reconstruct_clips", lambda _, clips: clips)
    report = evaluate(replace(settings, rows=("ceiling",)))
    summary = report.rows[0].summary
    assert isinstance(summary, RowSummary)
    assert summary.accuracy.wilson.value == 1
    assert summary.psnr.value == 100
    assert set(summary.by_group) == {"seen", "unseen_validation", "concept", "style", "camera"}


def test_the_backbone_is_asked_without_a_reference(
    settings: EvaluationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, object]] = []
    pipeline = make_pipeline()
    original = type(pipeline).__call__

    def watched(self: object, **arguments: object) -> object:
        calls.append(arguments)
        return original(self, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(pipeline), "__call__", watched)
    evaluate(replace(settings, rows=("floor", "seen")))
    floor, seen = calls
    assert floor["references"] is None
    assert floor["settings"] == seen["settings"].without_reference()  # type: ignore[attr-defined]
    assert [len(entry) for entry in seen["references"]] == [1] * 4  # type: ignore[attr-defined]
    assert floor["prompt"] == seen["prompt"] == [""] * 4


def test_a_misleading_prompt_names_another_condition(
    settings: EvaluationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    pipeline = make_pipeline()
    original = type(pipeline).__call__

    def watched(self: object, **arguments: Any) -> Any:
        calls.append(arguments)
        return original(self, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(pipeline), "__call__", watched)
    changes = {"reference_strength": "0.5", "guidance.reference_guidance_scale": 2.0}
    changed = replace(settings, rows=("misled",), settings=changes, options={"negative_reference": "neutral"})
    report = evaluate(changed)
    assert calls[0]["settings"].reference.reference_strength == 0.5
    assert len(calls[0]["negative_references"]) == 4
    generation = report.identity["generation"]
    assert (generation["reference_strength"], generation["negative_reference"]) == (0.5, "neutral")
    (row,) = report.rows
    for result, prompt, captions in zip(row.results, calls[0]["prompt"], calls[0]["reference_prompts"], strict=True):
        assert result.case.prompt_condition in set(CANDIDATES) - {result.case.condition}
        assert prompt == full_caption(random_scene(result.case.scene), parts_of(result.case.prompt_condition))
        assert captions == [full_caption(random_scene(result.case.reference_scene), parts_of(result.case.condition))]
    assert isinstance(row.summary, RowSummary)
    share = row.summary.shares["follow_text"]
    assert share is not None
    follow = [result.nearest == result.case.prompt_condition for result in row.results]
    assert share.wilson.value == sum(follow) / 4
    assert "follow text" in report.to_markdown()


def test_settings_are_checked_at_once() -> None:
    for wrong, message in (({"seed": 1}, "no setting seed"), ({"height": 32}, "size"), ({"batching": 3}, "batching")):
        with pytest.raises(InputError, match=message):
            EvaluationSettings(settings=wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generations": 0}, "generations of 1 or more"),
        ({"batch_size": 0}, "batch_size of 1 or more"),
        ({"seed": -1}, "seed of 0 or more"),
    ],
)
def test_wrong_numbers(change: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(EvaluationSettings(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [("seen", "sene"), ()])
def test_wrong_rows(settings: EvaluationSettings, rows: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="expected rows of seen, unseen"):
        evaluate(replace(settings, rows=rows))


def test_a_sheet_that_is_no_picture_is_refused_at_once(settings: EvaluationSettings, tmp_path: Path) -> None:
    seen: list[Progress] = []
    with pytest.raises(OutputError, match=r"ending in \.png"):
        evaluate(replace(settings, rows=("seen",), generations=1, sheet=tmp_path / "sheet.txt"), seen.append)
    assert not seen


def test_an_unknown_negative_reference(settings: EvaluationSettings) -> None:
    with pytest.raises(InputError, match="'x'"):
        evaluate(replace(settings, options={"negative_reference": "x"}))
