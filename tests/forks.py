"""Copies of the process of the tests, for which nothing has to be imported again: that would take ten seconds each."""

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which this system lacks")

_PATIENCE = 600.0
"""Seconds after which copies that wait for each other for ever are stopped; they need a few."""


def run_in_forks(jobs: Sequence[Callable[[], object]], folder: Path) -> None:
    """Run each job in a copy of this process, all at once, and fail with what the first to fail wrote.

    Their output is in `folder`, in one file for each. Where one fails, those that may wait for it are stopped.
    """
    outputs = [folder / f"fork-{number}.txt" for number in range(len(jobs))]
    running = {_start(job, output): output for job, output in zip(jobs, outputs, strict=True)}
    end = time.monotonic() + _PATIENCE
    try:
        while running:
            time.sleep(0.01)
            for child in list(running):
                done, code = os.waitpid(child, os.WNOHANG)
                if done:
                    output = running.pop(child)
                    assert code == 0, output.read_text()
            assert time.monotonic() < end, "\n".join(f"{output}: {output.read_text()}" for output in running.values())
    finally:
        for child in running:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _start(job: Callable[[], object], output: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, where a thread is left by a library
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        # What the tests have captured so far is theirs.
        sys.stdout = sys.stderr = output.open("w")
        os.dup2(sys.stdout.fileno(), 1)
        os.dup2(sys.stdout.fileno(), 2)
        job()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
