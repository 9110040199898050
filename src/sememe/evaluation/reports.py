"""An evaluation as a document: what was measured with which settings, to be saved, read again and continued."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from sememe.errors import InputError
from sememe.evaluation.statistics import Estimate
from sememe.evaluation.tables import format_share, to_json, to_markdown
from sememe.files import write_text

REPORT_KIND = "sememe evaluation"


@runtime_checkable
class Result(Protocol):
    """What became of a case; a dataclass."""

    @property
    def case(self) -> Any: ...

    @property
    def is_right(self) -> bool: ...


ResultT = TypeVar("ResultT", bound=Result)


@runtime_checkable
class Summary(Protocol):
    """The figures of a row; a dataclass."""

    @property
    def by_group(self) -> Mapping[str, Estimate]:
        """Shares of right results by group of cases."""
        ...

    def to_cells(self) -> Mapping[str, Any]:
        """The headline figures, by their column in a table."""
        ...


@dataclass(frozen=True)
class RowReport(Generic[ResultT]):
    """A row, finished or not.

    Attributes:
        name: Name of the row.
        about: what it measures, and at which size and length.
        num_planned: cases that it will have.
        results: cases done so far.
        summary: figures over them; None before the first.
        seconds: spent on them.
    """

    name: str
    about: Mapping[str, Any]
    num_planned: int
    results: tuple[ResultT, ...]
    summary: Summary | None
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
    rows: tuple[RowReport[Any], ...] = ()

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
                    "summary": None if row.summary is None else _plain(row.summary),
                    "cases": [_plain(result) for result in row.results],
                }
                for row in self.rows
            },
        }

    def to_markdown(self) -> str:
        """Tabulate the headline figures of rows that have results, and their accuracy by group of conditions."""
        rows = {row.name: row.summary for row in self.rows if row.summary is not None}
        headline = [{"row": name} | dict(row.to_cells()) for name, row in rows.items()]
        groups = [
            {"row": name} | {group: format_share(share) for group, share in row.by_group.items()}
            for name, row in rows.items()
        ]
        return f"{to_markdown(headline)}\n\n{to_markdown(groups)}"


def write_report(report: EvaluationReport, path: Path) -> None:
    """Write the report as JSON, atomically. Raises `OutputError` if it cannot be written."""
    write_text(path, to_json(report.to_document()))


@dataclass(frozen=True)
class SavedRow(Generic[ResultT]):
    """What an earlier run has done of a row."""

    results: tuple[ResultT, ...]
    seconds: float


def read_saved_rows(
    path: Path, identity: Mapping[str, Any], readers: Mapping[str, Callable[[Mapping[str, Any]], ResultT]]
) -> dict[str, SavedRow[ResultT]]:
    """Read the results of an earlier run with the same identity; none if there is no such file.

    Args:
        path: File of the report.
        identity: Identity of this run.
        readers: by row, what makes a result of its plain values.

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
        rows = {
            name: SavedRow(tuple(readers[name](case) for case in row["cases"]), row["seconds"])
            for name, row in document["rows"].items()
        }
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


def _plain(record: Any) -> dict[str, Any]:
    values: dict[str, Any] = asdict(record)
    return values
