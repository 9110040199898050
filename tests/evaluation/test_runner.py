"""The runner with a system of its own: clips are grey levels, and a case is right where its level is even."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sememe.errors import InputError
from sememe.evaluation.runner import EvaluationReport, Row, Runner, choose_rows
from sememe.evaluation.statistics import Estimate, wilson_interval
from sememe.video import Clip, SheetRow, read_image

REPORT = EvaluationReport("greys", {"seed": 0}, {"machine": "any"})


@dataclass(frozen=True)
class Level:
    case: int
    level: int

    @property
    def is_right(self) -> bool:
        return self.level % 2 == 0


@dataclass(frozen=True)
class Levels:
    mean: float
    by_group: Mapping[str, Estimate]

    def to_cells(self) -> dict[str, Any]:
        return {"mean": self.mean}


def grey(level: int) -> Clip:
    return Clip(np.full((3, 16, 16, 3), level, np.uint8), 8)


def summarise(results: Sequence[Level]) -> Levels:
    right = [result.is_right for result in results]
    mean = sum(result.level for result in results) / len(results)
    return Levels(mean, {"even": wilson_interval(sum(right), len(right))})


def make_row(name: str = "greys", num_cases: int = 5, made: list[int] | None = None, group: str = "table") -> Row:
    def make(cases: Sequence[int]) -> list[Clip]:
        if made is not None:
            made.extend(cases)
        return [grey(case) for case in cases]

    return Row(
        name=name,
        about={"about": "grey levels"},
        cases=tuple(range(10, 10 + num_cases)),
        make=make,
        judge=lambda case, clip: Level(case, int(clip.frames[0, 0, 0, 0])),
        summarise=summarise,
        read=lambda values: Level(**values),
        show=lambda case, clip, _: [SheetRow(str(case), clip)],
        group=group,
    )


def ignore(name: str, done: int, total: int, seconds: float | None) -> None:
    pass


def test_a_row_is_measured_and_saved(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    row, output = make_row(), tmp_path / "report.json"
    runner = Runner([row], REPORT, lambda *call: calls.append(call[:3]), output=output, batch_size=2)
    runner.measure(row)
    assert calls == [("greys", done, 5) for done in (0, 2, 4, 5)]
    document = json.loads(output.read_text())
    assert document == json.loads(json.dumps(runner.report.to_document()))
    assert (document["system"], document["is_complete"]) == ("greys", True)
    assert document["rows"]["greys"]["summary"]["mean"] == 12
    assert document["rows"]["greys"]["cases"] == [{"case": case, "level": case} for case in range(10, 15)]
    assert "60.0 %" in runner.report.to_markdown()
    runner.write_sheet([row], tmp_path / "sheet.png", num_examples=1)
    assert read_image(tmp_path / "sheet.png").shape[0] > 2 * 96


def test_what_is_done_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    made: list[int] = []
    row, other = make_row(made=made), make_row("other", 2)

    def stop(name: str, done: int, total: int, seconds: float | None) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Runner([row, other], REPORT, stop, output=output, batch_size=2).measure(row)
    runner = Runner([row, other], REPORT, ignore, output=output, batch_size=2)
    runner.measure(other)
    assert [(part.name, part.is_complete) for part in runner.report.rows] == [("greys", False), ("other", True)]
    runner.measure(row)
    assert made == [10, 11, 12, 13, 14], "nothing is made twice"
    assert runner.report.rows[0].summary == summarise([Level(case, case) for case in row.cases])


def test_another_report_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    row = make_row()
    Runner([row], REPORT, ignore, output=output).measure(row)
    with pytest.raises(InputError, match="seed"):
        Runner([row], replace(REPORT, identity={"seed": 1}), ignore, output=output)
    with pytest.raises(InputError, match="row greys"):
        Runner([replace(row, cases=(1, 2, 3, 4, 5))], REPORT, ignore, output=output)
    older = json.loads(output.read_text())
    del older["rows"]["greys"]["cases"][0]["level"]
    output.write_text(json.dumps(older))
    with pytest.raises(InputError, match=r"another version, .*; choose another output, or remove it"):
        Runner([row], REPORT, ignore, output=output)
    output.write_text('{"hello": 1}')
    with pytest.raises(InputError, match=r"report\.json"):
        Runner([row], REPORT, ignore, output=output)


def test_rows_are_chosen_by_name_and_by_group() -> None:
    rows = [make_row("a"), make_row("b", group="extra"), make_row("c"), make_row("d", group="extra")]

    def names(*wanted: str) -> list[str]:
        return [row.name for row in choose_rows(rows, wanted)]

    assert [row.name for row in choose_rows(rows, None)] == ["a", "c"]
    assert names("c", "a") == ["c", "a"]
    assert names("extra", "a") == ["b", "d", "a"]
    assert names("d", "extra", "d") == ["d", "b"]
    for wrong in (("e",), ("a", "e"), ()):
        with pytest.raises(InputError, match="expected rows of a, b, c, d"):
            names(*wrong)
