import json
from pathlib import Path

import pytest

from benchmarks.data_scale import ENTRIES_PER_FILE, go_on, main, make_cache, open_training


def test_a_cache_is_opened_up_to_its_first_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_cache(tmp_path, 2 * ENTRIES_PER_FILE + 100)
    assert len(list(tmp_path.glob("clean-*"))) == 4
    assert list(open_training(tmp_path)["seconds"]) == ["index", "conditions", "pairs", "batch"]
    assert go_on(tmp_path)["num_present"] == 2 * ENTRIES_PER_FILE + 100
    assert main(["--task", "open", "--folder", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["peak_bytes"] >= record["idle_bytes"] > 0
