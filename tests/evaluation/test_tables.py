"""Tables as people and programs read them."""

import json

import pytest

from sememe.errors import InputError
from sememe.evaluation.statistics import Estimate
from sememe.evaluation.tables import format_mean, format_share, to_json, to_markdown


def test_markdown() -> None:
    table = to_markdown([{"row": "seen", "n": 200}, {"row": "a|b", "share": 0.123456}])
    assert table.splitlines() == [
        "| row  |   n |  share |",
        "| ---- | --: | -----: |",
        "| seen | 200 |      – |",
        "| a\\|b |   – | 0.1235 |",
    ]
    assert to_markdown([{"row": "seen", "n": 200}], ["n"]).splitlines()[2] == "| 200 |"


def test_markdown_needs_columns() -> None:
    with pytest.raises(InputError, match="at least one column"):
        to_markdown([])


def test_json() -> None:
    assert json.loads(to_json({"b": 1, "a": "é"})) == {"b": 1, "a": "é"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"a": float("nan")})


def test_figures() -> None:
    assert format_share(Estimate(0.85, 0.794, 0.8929, 200)) == "85.0 % (79.4–89.3)"
    assert format_mean(Estimate(21.34, 20.9, 21.7, 200), "dB") == "21.3 dB (20.9–21.7)"
