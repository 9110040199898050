"""An evaluation as a document: what was measured with which settings, to be saved, read again and continued."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sememe.errors import InputError
from sememe.evaluation.cases import Case
from sememe.evaluation.grid import GridDifferences
from sememe.evaluation.rows import CaseResult, RowSummary, to_group_table, to_table
from sememe.evaluation.tables import to_json
from sememe.files import write_text

REPORT_KIND = "sememe evaluation"


@dataclass(frozen=True)
class RowReport:
    """A row, finished or not.

    Attributes:
        name: of the row.
        about: what it measures, and at which size and length.
        num_planned: cases that it will have.
        results: cases done so far.
        summary: figures over them; None before the first.
        seconds: spent on them.
    """

    name: str
    about: Mapping[str, Any]
    num_planned: int
    results: tuple[CaseResult, ...]
    summary: RowSummary | None
    seconds: float

    @property
    def is_complete(self) -> bool:
        return len(self.results) == self.num_planned


@dataclass(frozen=True)
class EvaluationReport:
    """All rows of an evaluation.

    Attributes:
        system: what was evaluated.
        identity: all that the results depend on, plain values; a report is only continued with the same.
        environment: software and machine, plain values.
        rows: in the order in which they were measured.
    """

    system: str
    identity: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: tuple[RowReport, ...]

    def to_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kind": REPORT_KIND,
            "system": self.system,
            "identity": dict(self.identity),
            "environment": dict(self.environment),
            "is_complete": all(row.is_complete for row in self.rows),
            "rows": {
                row.name: {
                    "about": dict(row.about),
                    "is_complete": row.is_complete,
                    "num_planned": row.num_planned,
                    "seconds": round(row.seconds, 1),
                    "summary": None if row.summary is None else asdict(row.summary),
                    "cases": [_flatten(result) for result in row.results],
                }
                for row in self.rows
            },
        }

    def to_markdown(self) -> str:
        """The headline figures of the rows that have results, and their accuracy by group of conditions."""
        summaries = {row.name: row.summary for row in self.rows if row.summary is not None}
        return f"{to_table(summaries)}\n\n{to_group_table(summaries)}"


def write_report(report: EvaluationReport, path: Path) -> None:
    """Writes the report as JSON, atomically. Raises `OutputError` if it cannot be written."""
    write_text(path, to_json(report.to_document()))


@dataclass(frozen=True)
class SavedRow:
    """What an earlier run has done of a row."""

    results: tuple[CaseResult, ...]
    seconds: float


def read_saved_rows(path: Path, identity: Mapping[str, Any]) -> dict[str, SavedRow]:
    """Results of an earlier run with the same identity; none if there is no such file.

    Raises:
        InputError: if the file is something else, or of another identity.
    """
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["kind"] != REPORT_KIND:
            raise KeyError("kind")
        saved_identity = document["identity"]
        rows = {name: SavedRow(_read_cases(row["cases"]), row["seconds"]) for name, row in document["rows"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} exists and is no report of an evaluation; choose another output") from error
    current = json.loads(to_json(dict(identity)))
    if saved_identity != current:
        differing = [
            key for key in current.keys() | saved_identity.keys() if saved_identity.get(key) != current.get(key)
        ]
        raise InputError(
            f"{path} holds a report with another {', '.join(sorted(differing))}; choose another output or remove it"
        )
    return rows


def _flatten(result: CaseResult) -> dict[str, Any]:
    values = asdict(result)
    return values.pop("case") | values


def _read_cases(rows: Sequence[Mapping[str, Any]]) -> tuple[CaseResult, ...]:
    names = [field.name for field in fields(Case)]
    results = []
    for row in rows:
        rest = {name: value for name, value in row.items() if name not in names}
        for name in ("differences", "true_differences"):
            rest[name] = GridDifferences(**rest[name])
        results.append(CaseResult(case=Case(**{name: row[name] for name in names}), **rest))
    return tuple(results)
