import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sememe.errors import RecipeError
from sememe.training.checkpoint import find_damage
from sememe.training.process import Distribution, keep_freed_memory
from sememe.training.progress import read_log
from training.ranks_program import CAN_SHARD

# Ten times 64 MB, allocated and freed: how often did the system have to hand out a fresh page?
COUNT_FAULTS = """
import resource, sys
if sys.argv[1] == "keep":
    from sememe.training.process import keep_freed_memory
    assert keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    block = bytearray(64_000_000)
    block[::4096] = b"x" * len(block[::4096])
    del block
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
"""


def count_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept() -> None:
    assert count_faults("keep") < 0.5 * count_faults("return")


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_processes_share_a_run_and_a_run_moves_between_numbers_of_them(tmp_path: Path) -> None:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(4)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [str(each.getsockname()[1]) for each in sockets]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    program = str(Path(__file__).parent / "ranks_program.py")
    subprocess.run([sys.executable, program, str(tmp_path), *ports], env=environment, check=True, timeout=600)
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
