"""Copies of the process of the tests, for which nothing has to be imported again: that would take ten seconds each."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def run_in_forks(jobs: Sequence[Callable[[], object]], folder: Path) -> None:
    """Run each job in a copy of this process, all at once, and fail with what they raised.

    Their output stays in `folder`, in one file for each. Where one fails, those that may wait for it are stopped.
    """
    outputs = [folder / f"fork-{number}.txt" for number in range(len(jobs))]
    running = {_start(job, output): output for job, output in zip(jobs, outputs, strict=True)}
    while running:
        child, code = os.wait()
        output = running.pop(child)
        if code:
            for other in running:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            pytest.fail(output.read_text())


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
