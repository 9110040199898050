import socket
from functools import partial
from pathlib import Path

import pytest

from forks import needs_fork, run_in_forks
from video_as_prompt.context_parallel_ranks import compare_all


@needs_fork
@pytest.mark.filterwarnings("ignore:.*all_gather_tensor:FutureWarning")  # of torch, about diffusers
def test_two_ranks_that_share_tokens_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    run_in_forks([partial(compare_all, rank, port, tmp_path) for rank in range(2)], tmp_path)
