"""Running the command in this process."""

from dataclasses import dataclass

import pytest

from sememe.cli.app import run


@dataclass(frozen=True)
class Outcome:
    """What a command left behind on its way out."""

    code: int
    out: str
    err: str


def run_here(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Runs the command in this process."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def refused(outcome: Outcome) -> str:
    """The one line with which a user's mistake is refused."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, outcome.err
    assert outcome.err.splitlines()[-1] == lines[0], outcome.err
    assert "Traceback" not in outcome.err
    return lines[0]
