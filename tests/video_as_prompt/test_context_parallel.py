"""Two ranks that share out target and reference compute what one does."""

import json
import socket
from pathlib import Path

import pytest
from torch.multiprocessing.spawn import start_processes

from video_as_prompt.context_parallel_ranks import compare_all

CASES = [("wan", "joint"), ("wan", "cached"), ("cogvideox", "joint"), ("cogvideox", "cached"), ("wan", "backbone")]


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What either rank found wrong, by case. One pair of processes compares all, for starting it costs seconds."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # Not forked: the threads of this process would not survive it, and locks that they hold would stay held.
    ranks = start_processes(compare_all, (port, CASES, str(folder)), nprocs=2, join=False, start_method="spawn")
    assert ranks is not None
    for _ in range(60):
        if ranks.join(timeout=5):
            found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
            assert len(found) == 2
            return found[0] | found[1]
    for process in ranks.processes:
        process.kill()
    pytest.fail("the ranks wait for each other")


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_two_ranks_equal_one(family: str, mode: str, failures: dict[str, str]) -> None:
    assert failures.get(f"{family}-{mode}", "") == ""
