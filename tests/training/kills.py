"""Kill runs at random moments, and see that each goes on to the very end that it would have had.

`python tests/training/kills.py --kills 200 --processes 2`: runs of 50 steps that save at every step are begun, one of
their processes is killed (SIGKILL) after a random time, and they are begun again, until so many kills are done. After
each kill the newest checkpoint must be whole, and not older than the one before. When a run is complete, all that its
last checkpoint holds must be, bit by bit, what that of an undisturbed run holds. `--hang` stops a process (SIGSTOP)
instead, once, and the other one must end by itself within a minute.
"""

import argparse
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sememe.training.checkpoint import count_steps, find_damage, list_checkpoints, load_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.ranks import run

logger = logging.getLogger(__name__)

_GRACE = 10.0
"""Seconds after which the other processes are ended when one is gone, as torchrun does; they wait for it at first."""


@dataclass(frozen=True)
class Tally:
    """What came of the kills.

    Attributes:
        kills: Processes that were killed.
        saves: Kills that left a checkpoint that was not complete.
        runs: Runs that were complete in the end.
        waited: The longest that another process took to end by itself, in seconds.
        ended: Kills after which another process had to be ended.
    """

    kills: int
    saves: int
    runs: int
    waited: float
    ended: int


def start(folder: Path, size: int, steps: int, save_every: int = 1) -> list[int]:
    """Fork the processes of a run, and return their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            # Each message of a process that loses another is expected.
            with Path(os.devnull).open("w") as sink:
                os.dup2(sink.fileno(), 2)
            code = 1
            try:
                run(folder, rank, size, port, num_steps=steps, shard=-1, save_every=save_every, log_every=10)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    return children


def wait(children: Sequence[int], seconds: float) -> list[int]:
    """Wait for processes to end, and return those that are still there after so many seconds.

    Raises:
        AssertionError: One ended with an error.
    """
    left, end = list(children), time.monotonic() + seconds
    while left and time.monotonic() < end:
        for child in list(left):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0, f"a process ended with {status}"
                left.remove(child)
        time.sleep(0.01)
    return left


def end(children: Sequence[int]) -> float | None:
    """Wait for the processes that are left when one was killed.

    Returns:
        After how many seconds they ended; None if they had to be ended.
    """
    began, left = time.monotonic(), set(children)
    while left:
        left = {child for child in left if not os.waitpid(child, os.WNOHANG)[0]}
        time.sleep(0.01)
        if time.monotonic() - began > _GRACE:
            for child in left:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            return None
    return time.monotonic() - began


def same(one: Path, two: Path) -> bool:
    """Whether two checkpoints hold the same, bit by bit."""
    first, second = load_checkpoint(one), load_checkpoint(two)
    pairs = [(first.weights, second.weights), (first.average or {}, second.average or {})]
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in [*pairs, (first.optimizer, second.optimizer)]
    )


def kill_runs(root: Path, kills: int, size: int, steps: int, seed: int) -> Tally:
    """Kill processes until it is enough; the last run goes on undisturbed to its end.

    Raises:
        AssertionError: A run was not what it has to be.
    """
    rng = random.Random(seed)
    began = time.monotonic()
    assert not wait(start(root / "straight", size, steps), 3600.0)
    duration = time.monotonic() - began
    (*_, straight) = list_checkpoints(root / "straight" / "checkpoints")
    done = saves = runs = ended = 0
    longest = 0.0
    while done < kills:
        folder, newest = root / f"run-{runs}", 0
        while True:
            running = wait(start(folder, size, steps), rng.uniform(0.0, duration) if done < kills else 3600.0)
            if not running:
                duration *= 0.8  # the machine has become faster, or the kills would mostly come too late
                break
            os.kill(rng.choice(running), signal.SIGKILL)
            waited = end(running)
            ended += waited is None
            longest = max(longest, waited or 0.0)
            done += 1
            saves += bool(list((folder / "checkpoints").glob(".step_*")))
            present = list_checkpoints(folder / "checkpoints")
            assert all(find_damage(path) is None for path in present), f"kill {done}: a damaged checkpoint"
            latest = count_steps(present[-1]) if present else 0
            duration *= 1.1 if latest == newest else 1.0
            assert latest >= newest, f"kill {done}: checkpoint {newest} is gone"
            newest = latest
            if done % 10 == 0:
                logger.info("%s", Tally(done, saves, runs, longest, ended))
        (*_, last) = list_checkpoints(folder / "checkpoints")
        assert same(straight, last), f"run {runs} ended otherwise"
        runs += 1
    return Tally(done, saves, runs, longest, ended)


def hang_run(root: Path) -> float:
    """Stop one of two processes in the middle of a run; return the seconds after which the other ended by itself."""
    children = start(root / "hang", 2, 10_000, save_every=20)
    while not list_checkpoints(root / "hang" / "checkpoints"):
        time.sleep(0.1)
    os.kill(children[1], signal.SIGSTOP)
    began = time.monotonic()
    os.waitpid(children[0], 0)
    seconds = time.monotonic() - began
    os.kill(children[1], signal.SIGKILL)
    os.waitpid(children[1], 0)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hang", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory() as folder:
        # Before all forks, because the first step of a process imports much of torch.
        run(Path(folder) / "first", 0, 1, "", num_steps=1)
        if arguments.hang:
            sys.stdout.write(f"ended {hang_run(Path(folder)):.0f} seconds after the other hung\n")
            return
        tally = kill_runs(Path(folder), arguments.kills, arguments.processes, arguments.steps, arguments.seed)
    sys.stdout.write(f"{tally}\n")


if __name__ == "__main__":
    main()
