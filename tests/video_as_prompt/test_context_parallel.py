"""Two ranks that share out target and reference compute what one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from video_as_prompt.context_parallel_ranks import CASES


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What either rank found wrong, by case. One pair of processes compares all, for starting it costs seconds."""
    folder, tests = tmp_path_factory.mktemp("ranks"), Path(__file__).parents[1]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests.parent / "src"), str(tests)])}
    command = [sys.executable, str(tests / "video_as_prompt" / "context_parallel_ranks.py"), str(port), str(folder)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return found[0] | found[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(("family", "mode"), CASES)
def test_two_ranks_equal_one(family: str, mode: str, failures: dict[str, str]) -> None:
    assert failures.get(f"{family}-{mode}", "") == ""
