"""Progress of a command, on stderr: a bar with the remaining time on a terminal, plain lines otherwise."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from sememe.events import Progress

_LINES_PER_STAGE = 10
_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def show_progress() -> Iterator[Callable[["Progress"], None]]:
    """Yields a handler for `Progress`, to be passed to a verb."""
    if sys.stderr.isatty():
        with _bar() as handler:
            yield handler
    else:
        yield PlainLines()


def drop_stderr() -> None:
    """Discard standard error, which nobody can read."""
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (open until the process ends)


def echo_json(document: Mapping[str, Any] | list[Any], *, indent: int | None = 2) -> None:
    """Writes a document to standard output; with `indent` None on one line."""
    typer.echo(json.dumps(document, indent=indent, ensure_ascii=False))


class PlainLines:
    """A line when a stage begins, at each tenth of its steps, and where these take long also after some seconds."""

    def __init__(self) -> None:
        self._stage = ""
        self._tenth = 0
        self._spoken = 0.0

    def __call__(self, progress: "Progress") -> None:
        tenth = _LINES_PER_STAGE * progress.step // progress.num_steps if progress.num_steps else 0
        now = time.monotonic()
        is_new = progress.stage != self._stage or tenth > self._tenth or not progress.step
        if not is_new and now - self._spoken < _SECONDS_BETWEEN_LINES:
            return
        self._stage, self._tenth, self._spoken = progress.stage, tenth, now
        try:
            typer.echo(_line(progress), err=True)
        except OSError:  # a lost line of progress must not end the work
            drop_stderr()


def _line(progress: "Progress") -> str:
    if not progress.step:
        return progress.description
    left = "" if progress.seconds_left is None else f", {_duration(progress.seconds_left)} left"
    return f"{progress.description}: step {progress.step} of {progress.num_steps}{left}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


@contextmanager
def _bar() -> Iterator[Callable[["Progress"], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
    )
    # transient: only the result stays on the screen.
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=None, left="")
        stage = ""

        def handle(progress: "Progress") -> None:
            nonlocal task, stage
            if progress.stays:
                bars.console.print(progress.stage, markup=False, highlight=False)
            if progress.stage != stage:
                # A new task, because rich cannot reset a known total to unknown.
                bars.remove_task(task)
                task = bars.add_task(progress.stage, total=progress.num_steps or None, left="")
                stage = progress.stage
            left = "" if progress.seconds_left is None else f"{_duration(progress.seconds_left)} left"
            total = progress.num_steps or None
            bars.update(task, description=progress.description, total=total, completed=progress.step, left=left)

        yield handle
