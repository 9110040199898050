"""`sememe convert`: flags into a request, a result into lines or JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.runs import refused, run_here
from model_folders import save_published
from sememe.video_as_prompt import convert as workflow
from sememe.video_as_prompt.convert import ConversionRequest, ConversionResult

RESULT = ConversionResult(Path("in"), Path("out"), "own", "wan", (0, 4), 5, 20_000_000_000, 4_280_000, 41_000_000, 1.5)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[ConversionRequest]:
    """The requests that reach the workflow, which does nothing."""
    seen: list[ConversionRequest] = []

    def note(request: ConversionRequest, _: Any) -> ConversionResult:
        seen.append(request)
        return RESULT

    monkeypatch.setattr(workflow, "convert_model", note)
    return seen


def test_without_flags_it_splits(requests: list[ConversionRequest], capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_here(capsys, "convert", "in", "out")
    assert outcome.code == 0
    assert requests == [ConversionRequest(source="in", output=Path("out"))]
    lines = outcome.out.splitlines()
    assert lines[0] == "out"
    assert "20.00 B parameters, 4.28 M of them the expert's; experts in 2 blocks; 41.0 MB" in lines[1]


def test_every_flag_reaches_the_workflow(requests: list[ConversionRequest], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--merged", "--expert", "e", "--revision", "v1", "--max-shard-size", "2GB", "--json"]
    outcome = run_here(capsys, "convert", "owner/name", "out", *flags)
    assert requests == [ConversionRequest("owner/name", Path("out"), "published", "e", "v1", "2GB")]
    assert json.loads(outcome.out) == RESULT.to_document()


def test_a_conversion_from_start_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_published(tmp_path / "source")
    outcome = run_here(capsys, "convert", source, tmp_path / "out", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["output"] == str(tmp_path / "out")
    assert (tmp_path / "out" / "expert" / "config.json").is_file()
    assert "does not exist yet" in refused(run_here(capsys, "convert", source, tmp_path / "out"))
