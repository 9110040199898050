import io
import json
import sys
from types import SimpleNamespace

import pytest

from sememe.cli import app, console
from sememe.events import Progress


def told(capsys: pytest.CaptureFixture[str], *events: Progress) -> list[str]:
    capsys.readouterr()
    with console.show_progress() as handle:
        for event in events:
            handle(event)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_plain_lines_come_by_stage_and_by_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [Progress("generating", step, 40, 75.0) for step in range(1, 41)]
    lines = told(capsys, Progress("loading tiny"), Progress("generating", 0, 40), *steps, Progress("writing"))
    assert lines[:2] == ["loading tiny", "generating"]
    assert lines[2] == "generating: step 4 of 40, 1 min 15 s left"
    assert lines[-2:] == ["generating: step 40 of 40, 1 min 15 s left", "writing"]
    assert len(lines) == 13


def test_slow_steps_are_shown_by_time_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 4.0, 11.0, 12.0])
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    lines = console.PlainLines()
    for step in range(4):
        lines(Progress("generating", step, 1000))
    assert capsys.readouterr().err == "generating\ngenerating: step 2 of 1000\n"


def test_other_figures_are_no_other_stage(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [Progress("training", step, 1000, figures=f"loss {1 / (step + 1):.4f}") for step in range(1000)]
    lines = told(capsys, *steps)
    assert lines[:2] == ["training, loss 1.0000", "training, loss 0.0099: step 100 of 1000"]
    assert len(lines) == 10


def test_a_repeated_stage_is_shown_again(capsys: pytest.CaptureFixture[str]) -> None:
    run = [Progress("generating", 0, 1), Progress("generating", 1, 1, 0.0), Progress("writing")]
    assert told(capsys, *run, *run) == 2 * ["generating", "generating: step 1 of 1, 0 s left", "writing"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (7260.0, "2 h 01 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert console._duration(seconds) == text


def test_a_terminal_gets_a_bar_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    shown = "\n".join(told(capsys, Progress("loading"), Progress("generating [1]", 3, 8, 5.0)))
    kept = told(capsys, Progress("an hour [of video]", stays=True), Progress("generating", 3, 8, 5.0))
    assert [line for line in kept if line.endswith("an hour [of video]")]
    assert "3/8" not in "\n".join(told(capsys, Progress("generating", 3, 8, 5.0), Progress("writing")))
    assert "generating [1]" in shown
    assert "3/8" in shown
    assert "5 s left" in shown


class GoneReader(io.StringIO):
    """Standard error whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(text)


def test_a_reader_that_has_gone_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", GoneReader())
    with console.show_progress() as handle:
        handle(Progress("generating"))
        handle(Progress("writing"))


def test_a_closed_standard_error_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as ended:
        app.main(["--version"])
    assert ended.value.code == 0
    with console.show_progress() as handle:
        handle(Progress("generating"))


def test_json_keeps_letters(capsys: pytest.CaptureFixture[str]) -> None:
    console.echo_json({"prompt": "ein Bär"}, indent=None)
    out = capsys.readouterr().out
    assert out == '{"prompt": "ein Bär"}\n'
    assert json.loads(out) == {"prompt": "ein Bär"}
