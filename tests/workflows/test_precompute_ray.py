"""Encoding on a cluster of two machines, which are two nodes of this one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sememe.data.array_cache import ArrayCache
from sememe.data.manifest import MANIFEST_NAME, write_manifest
from sememe.events import Progress
from sememe.training.recipes import ClipFormat
from sememe.workflows.precompute import precompute_latents
from workflows.mean_arrays import MeansRecipe, MeetingRecipe
from workflows.painted_videos import make_sample, paint

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
NUM_VIDEOS = 24


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from ray.cluster_utils import Cluster

    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root / 'tests'}:{root / 'src'}")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster()
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=100 * 1024 * 1024)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


def test_two_machines_make_the_cache_that_one_makes(address: str, tmp_path: Path) -> None:
    for number in range(NUM_VIDEOS):
        paint(tmp_path / f"{number}.mp4", 9 * number)
    write_manifest([make_sample(f"{number}.mp4") for number in range(NUM_VIDEOS)], tmp_path / MANIFEST_NAME)
    clips = ClipFormat(num_frames=3, height=16, width=16)
    given: dict[str, Any] = {"name": "means", "description": "", "clips": clips, "device": "cpu", "batch_size": 2}
    (tmp_path / "meeting").mkdir()
    together = MeetingRecipe(**given, dataset=tmp_path, meeting=tmp_path / "meeting")
    seen: list[Progress] = []
    far = precompute_latents(together, tmp_path / "far", seen.append, ray=address)
    near = precompute_latents(MeansRecipe(**given, dataset=tmp_path), tmp_path / "near")
    assert far.num_new == near.num_new == {"means": NUM_VIDEOS}
    assert "encoding on 2 workers of 2 machines" in {progress.stage for progress in seen}
    writers = {path.name.split("-")[1] for path in (tmp_path / "far").glob("means-*")}
    assert len(writers) == 2, "both machines had a share"
    one, two = (ArrayCache.open(tmp_path / name) for name in ("far", "near"))
    assert one.items == two.items
    assert torch.equal(one.select("means", np.arange(NUM_VIDEOS)), two.select("means", np.arange(NUM_VIDEOS)))
