import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sememe.training.process import keep_freed_memory
from sememe.training.progress import read_log

# Ten times 64 MB, allocated and freed: how often did the system have to hand out a fresh page?
COUNT_FAULTS = """
import resource, sys
if sys.argv[1] == "keep":
    from sememe.training.process import keep_freed_memory
    assert keep_freed_memory()
for _ in range(10):
    block = bytearray(64_000_000)
    block[::4096] = b"x" * len(block[::4096])
    del block
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt))
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


SCRIPT = Path(__file__).parent / "two_ranks.py"


def start(folder: Path, num_ranks_in_batch: int, weight_seed: int, **variables: str) -> subprocess.Popen[bytes]:
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, str(SCRIPT), str(folder), str(num_ranks_in_batch), str(weight_seed)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def test_two_processes_equal_one_with_the_batches_of_both(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    # The second rank begins with other weights on purpose: the main rank's must be given to it.
    processes = [start(tmp_path / "two", 1, rank, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    processes.append(start(tmp_path / "one", 2, 0))
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors.decode()
    two, one = (load_file(tmp_path / name / "model" / "network.safetensors") for name in ("two", "one"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5)
    assert torch.equal(one["unused"], torch.ones(2, 2))
    losses = [[line["loss"] for line in read_log(tmp_path / name)] for name in ("two", "one")]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-5)
    assert len(losses[0]) == 6
