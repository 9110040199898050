import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from forks import needs_fork, run_in_forks
from sememe.errors import RecipeError
from sememe.training.checkpoint import find_damage
from sememe.training.process import Distribution, keep_freed_memory
from sememe.training.progress import read_log
from training.kills import kill_runs
from training.ranks import CAN_SHARD, run, run_all


def count_faults() -> int:
    """Ten times 64 MB, allocated and freed: how often does the system have to hand out a fresh page?"""
    import resource  # which only some systems have

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        block = bytearray(64_000_000)
        block[::4096] = b"x" * len(block[::4096])
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def count_faults_with_kept_memory(output: Path) -> None:
    assert keep_freed_memory()
    output.write_text(str(count_faults()))


@needs_fork
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept(tmp_path: Path) -> None:
    run_in_forks([partial(count_faults_with_kept_memory, tmp_path / "kept")], tmp_path)
    # A process of its own, whose heap holds nothing that was freed.
    code = f"{inspect.getsource(count_faults)}\nprint(count_faults())"
    returned = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int((tmp_path / "kept").read_text()) < 0.5 * int(returned)


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory()


@needs_fork
def test_processes_share_a_run_and_a_run_moves_between_numbers_of_them(tmp_path: Path) -> None:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(4)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [str(each.getsockname()[1]) for each in sockets]
    # First, so that what its first step imports and checks is there in all others.
    with patch.dict(os.environ):
        run(tmp_path / "one", 0, 1, "")
    jobs: list[Callable[[], object]] = [
        partial(run, tmp_path / "one_muon", 0, 1, "", optimizer="muon"),
        partial(kill_runs, tmp_path / "killed", kills=2, size=1, steps=4, seed=0),
        *(partial(run_all, tmp_path, number, ports) for number in range(4)),
    ]
    run_in_forks(jobs, tmp_path)
    one = load_file(tmp_path / "one" / "model" / "network.safetensors")
    log = read_log(tmp_path / "one")
    assert torch.equal(one["blocks.0.unused"], torch.ones(2, 2)), "a parameter without a gradient does not decay"
    assert int(one["statistics.num_batches_tracked"]) == 10
    assert {"even", "odd"} < log[-1].keys()
    assert [line["step"] for line in log] == [1, 2, 4, 6, 8, 10]
    for name in ("parallel", "moved"):
        other = load_file(tmp_path / name / "model" / "network.safetensors")
        for key, value in one.items():
            assert torch.allclose(other[key], value, atol=1e-6, rtol=1e-6), (name, key)
        lines = read_log(tmp_path / name)
        for figure in ("loss", "even", "odd", "grad_norm"):
            assert [line.get(figure) for line in lines] == pytest.approx([line.get(figure) for line in log], abs=2e-6)

    if CAN_SHARD:
        parts = tmp_path / "moved" / "checkpoints" / "step_000008"
        names = [f"weights-0000{n}-of-00002.safetensors" for n in (1, 2)]
        assert sorted(path.name for path in parts.glob("w*")) == names
        (parts / names[1]).unlink()
        assert find_damage(parts) == f"{names[1]} is missing"
    # Directions of almost no size, which Muon makes as large as the others, are rounding to a part.
    muon, other = (
        load_file(tmp_path / name / "model" / "network.safetensors") for name in ("one_muon", "sharded_muon")
    )
    assert all(torch.allclose(other[key], value, atol=1e-5, rtol=1e-5) for key, value in muon.items())


def test_shares_are_dealt_to_all_processes_evenly() -> None:
    ranks = [Distribution(rank=rank, num_ranks=2, device=torch.device("cpu")) for rank in range(2)]
    assert [list(rank.take_shares(4)) for rank in ranks] == [[0, 1], [2, 3]]
    with pytest.raises(RecipeError, match="multiple of the number of processes, 2, got 3"):
        ranks[0].take_shares(3)


def test_processes_that_share_tokens_have_the_same_shares() -> None:
    ranks = [Distribution(rank=rank, num_ranks=4, context=2, device=torch.device("cpu")) for rank in range(4)]
    assert [list(rank.take_shares(4)) for rank in ranks] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [rank.counts_shares for rank in ranks] == [True, False, True, False]
    with pytest.raises(RecipeError, match=r"processes divided by training\.context=2, 2, got 3"):
        ranks[0].take_shares(3)
