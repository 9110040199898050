"""Run an evaluation: make clips, judge them, save what is done, and go on where an earlier run was stopped.

A system supplies its rows as `Row` records; nothing here knows what it generates, or from what.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from sememe.errors import InputError
from sememe.evaluation.statistics import Estimate, format_share, to_json, to_markdown
from sememe.files import write_text
from sememe.video import Clip, SheetRow, contact_sheet, write_image

REPORT_KIND = "sememe evaluation"


@runtime_checkable
class Result(Protocol):
    """The result of a case; a dataclass."""

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
        """Return the headline figures, by their column in a table."""
        ...


@dataclass(frozen=True)
class RowReport(Generic[ResultT]):
    """A row, finished or not.

    Attributes:
        name: Name of the row.
        about: What it measures, and at which size and length.
        num_planned: Number of cases that it will have.
        results: Results of the cases done so far.
        summary: Figures over them; None before the first.
        seconds: Seconds spent on them.
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
        system: Name of what was evaluated.
        identity: All that the results depend on, plain values; a report is only continued with the same.
        environment: Software and machine, plain values.
        rows: In the order in which they were measured.
    """

    system: str
    identity: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: tuple[RowReport[Any], ...] = ()

    def to_document(self) -> dict[str, Any]:
        """Return plain values for JSON."""
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
                    "summary": None if row.summary is None else asdict(row.summary),  # type: ignore[call-overload]
                    "cases": [asdict(result) for result in row.results],
                }
                for row in self.rows
            },
        }

    def to_markdown(self) -> str:
        """Tabulate the headline figures of rows that have results, and their accuracy by group, if there are any."""
        rows = {row.name: row.summary for row in self.rows if row.summary is not None}
        headline = [{"row": name} | dict(row.to_cells()) for name, row in rows.items()]
        groups = [
            {"row": name} | {group: format_share(share) for group, share in row.by_group.items()}
            for name, row in rows.items()
        ]
        tables = [to_markdown(headline), *([to_markdown(groups)] if any(len(line) > 1 for line in groups) else [])]
        return "\n\n".join(tables)


def write_report(report: EvaluationReport, path: Path) -> None:
    """Write the report as JSON, atomically. Raises `OutputError` if it cannot be written."""
    write_text(path, to_json(report.to_document()))


@dataclass(frozen=True)
class SavedRow(Generic[ResultT]):
    """The results of a row that an earlier run has made, and the seconds spent on them."""

    results: tuple[ResultT, ...]
    seconds: float


def read_saved_rows(
    path: Path, identity: Mapping[str, Any], readers: Mapping[str, Callable[[Mapping[str, Any]], ResultT]]
) -> dict[str, SavedRow[ResultT]]:
    """Read the results of an earlier run with the same identity; none if there is no such file.

    Args:
        path: File of the report.
        identity: Identity of this run.
        readers: Functions that make a result of its plain values, by row.

    Raises:
        InputError: If the file is something else, of another identity, or of a version that judged otherwise.
    """
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["kind"] != REPORT_KIND:
            raise KeyError("kind")
        saved_identity, saved_rows = document["identity"], document["rows"]
        saved_cases = {name: (row["cases"], row["seconds"]) for name, row in saved_rows.items()}
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
    try:
        return {
            name: SavedRow(tuple(readers[name](case) for case in cases), seconds)
            for name, (cases, seconds) in saved_cases.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} holds rows of another version, whose cases were judged otherwise; choose another output, or "
            "remove it to measure them again"
        ) from error


CaseT = TypeVar("CaseT")
OnProgress = Callable[[str, int, int, float | None], None]
"""Called with the name of a row, its cases done, its cases in all, and an estimate of the seconds left."""
TABLE = "table"
"""The group of the rows that are measured unless others are asked for."""


@dataclass(frozen=True)
class Row(Generic[CaseT, ResultT]):
    """One row of an evaluation.

    Attributes:
        name: Name in reports and on the command line.
        about: What it measures, as plain values.
        cases: Cases in the order in which they are done.
        make: Function that makes one clip for each of some cases.
        judge: Function that compares the clip of a case with what it should show.
        summarise: Function that gives the figures of finished cases.
        read: Function that makes a result of the plain values of a saved report.
        show: Function that makes strips of the sheet of examples, of a case, its clip and its result.
        group: Name by which all rows of a group are chosen at once.
    """

    name: str
    about: Mapping[str, Any]
    cases: tuple[CaseT, ...]
    make: Callable[[Sequence[CaseT]], list[Clip]]
    judge: Callable[[CaseT, Clip], ResultT]
    summarise: Callable[[Sequence[ResultT]], Summary]
    read: Callable[[Mapping[str, Any]], ResultT]
    show: Callable[[CaseT, Clip, ResultT], list[SheetRow]]
    group: str = TABLE


@dataclass(frozen=True)
class SystemRows(Generic[CaseT, ResultT]):
    """The rows of a system.

    Attributes:
        rows: All there are.
        identity: What their results depend on besides model, settings and seed, as plain values.
    """

    rows: tuple[Row[CaseT, ResultT], ...]
    identity: Mapping[str, Any]


def choose_rows(rows: Sequence[Row[CaseT, ResultT]], names: Sequence[str] | None) -> tuple[Row[CaseT, ResultT], ...]:
    """Return the rows with these names, in this order, each once.

    Args:
        rows: All there are; no group has the name of a row.
        names: Names of rows or groups; None for the group `TABLE`.

    Raises:
        InputError: A row does not exist, or none is named.
    """
    groups = {
        group: tuple(row for row in rows if row.group == group) for group in dict.fromkeys(row.group for row in rows)
    }
    singles = {row.name: (row,) for row in rows}
    assert singles.keys().isdisjoint(groups)
    by_name = singles | groups
    names = (TABLE,) if names is None else names
    chosen = {row.name: row for name in names for row in by_name.get(name, ())}
    if not by_name.keys() >= set(names) or not chosen:
        raise InputError(f"expected rows of {', '.join(by_name)}, got {', '.join(names) or 'none'}")
    return tuple(chosen.values())


class Runner(Generic[CaseT, ResultT]):
    """One evaluation, saved after every batch.

    Args:
        rows: All that the system has.
        report: What is measured and where; its rows are replaced.
        on_progress: Function that is called before a row and after every batch.
        output: JSON report, continued if it is there; None to keep the results in memory only.
        batch_size: Number of cases that are made together.

    Raises:
        InputError: The output holds something else, or a report with another identity.
    """

    def __init__(
        self,
        rows: Sequence[Row[CaseT, ResultT]],
        report: EvaluationReport,
        on_progress: OnProgress,
        *,
        output: Path | None = None,
        batch_size: int = 8,
    ) -> None:
        self.rows, self.on_progress = tuple(rows), on_progress
        self.output, self.batch_size = output, batch_size
        self._report = report
        self._done: dict[str, RowReport[ResultT]] = {}
        if output is not None:
            saved = read_saved_rows(output, report.identity, {row.name: row.read for row in rows})
            for row in self.rows:
                if row.name in saved:
                    self._record(row, saved[row.name])

    @property
    def report(self) -> EvaluationReport:
        """All rows that were measured so far, those of earlier runs first."""
        return replace(self._report, rows=tuple(self._done.values()))

    def measure(self, row: Row[CaseT, ResultT]) -> None:
        """Make and judge the cases of a row that are left, and save the report after each batch."""
        before = self._done.get(row.name)
        results, seconds = (list(before.results), before.seconds) if before else ([], 0.0)
        already, total, begin = len(results), len(row.cases), time.monotonic()
        self.on_progress(row.name, already, total, None)
        while len(results) < total:
            cases = row.cases[len(results) : len(results) + self.batch_size]
            results += [row.judge(case, clip) for case, clip in zip(cases, row.make(cases), strict=True)]
            spent = time.monotonic() - begin
            self._record(row, SavedRow(tuple(results), seconds + spent))
            if self.output is not None:
                write_report(self.report, self.output)
            self.on_progress(row.name, len(results), total, spent / (len(results) - already) * (total - len(results)))

    def write_sheet(
        self, rows: Sequence[Row[CaseT, ResultT]], path: Path, *, num_examples: int = 2, seed: int = 0
    ) -> None:
        """Write a contact sheet with right and wrong examples of measured rows, drawn by the seed and made once more.

        Args:
            rows: In this order.
            path: PNG.
            num_examples: Right ones and wrong ones of each row, at most.
            seed: Seed of the draw.
        """
        strips: list[SheetRow] = []
        for row in rows:
            for right in (True, False):
                pool = [result for result in self._done[row.name].results if result.is_right is right]
                picks = np.random.Generator(np.random.PCG64(seed)).permutation(len(pool))[:num_examples]
                cases = [pool[pick].case for pick in picks]
                for case, clip in zip(cases, row.make(cases) if cases else [], strict=True):
                    strips += row.show(case, clip, row.judge(case, clip))
        write_image(contact_sheet(strips, columns=9, cell_height=96), path)

    def _record(self, row: Row[CaseT, ResultT], done: SavedRow[ResultT]) -> None:
        results = done.results
        if tuple(result.case for result in results) != row.cases[: len(results)]:
            raise InputError(
                f"the saved cases of row {row.name} are not those of these settings; choose another output"
            )
        summary = row.summarise(results) if results else None
        self._done[row.name] = RowReport(row.name, row.about, len(row.cases), results, summary, done.seconds)
