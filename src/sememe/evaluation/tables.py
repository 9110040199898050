"""Records as Markdown tables and as JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sememe.errors import InputError
from sememe.evaluation.statistics import Estimate


def to_markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """A Markdown table; figures are aligned right, a missing cell is a dash.

    Args:
        rows: one mapping per line, from column to value.
        columns: which, in this order; None for all in the order of their first appearance.

    Raises:
        InputError: if there are no columns.
    """
    names = list(columns) if columns is not None else list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise InputError("expected at least one column for a table, got none")
    cells = [[format_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(3, len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    numeric = [any(_is_number(row.get(name)) for row in rows) for name in names]
    rule = [("-" * (width - 1) + ":") if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    return "\n".join("| " + " | ".join(_pad(line, widths, numeric)) + " |" for line in (names, rule, *cells))


def to_json(records: Any) -> str:
    """JSON of plain values, indented, with keys in the order given; NaN is an error of ours."""
    return json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def format_share(estimate: Estimate) -> str:
    """A proportion in per cent: "85.0 % (79.4–89.3)"."""
    return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


def format_mean(estimate: Estimate, unit: str = "", digits: int = 1) -> str:
    """A mean with its interval: "21.3 dB (20.9–21.7)"."""
    value, low, high = (f"{number:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value}{f' {unit}' if unit else ''} ({low}–{high})"


def format_cell(value: Any) -> str:
    """One value as text; a vertical bar is escaped."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Estimate)) and not isinstance(value, bool)


def _pad(line: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    return [
        cell.rjust(width) if is_right else cell.ljust(width)
        for cell, width, is_right in zip(line, widths, right, strict=True)
    ]
