"""Cost of opening a training by the number of its clips: `python -m benchmarks.data_scale`.

Caches of several sizes are made, with what is known of real clips (keys, captions, conditions, hashes) and values of a
few bytes in place of latents. As many lie in a file as latents of Wan2.1's size would. Each is then opened in a process
of its own, as an expert's training does: index, conditions, pairs, a first batch read from the files. Reading the list
of a dataset of as many videos, and going on with a cache, are measured beside it.
"""

import argparse
import hashlib
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.results import RESULTS, describe_run, write_result
from sememe.data.array_cache import ArrayCache
from sememe.data.array_writer import ArrayCacheWriter
from sememe.data.cache_index import INDEX_NAME, ClipItem
from sememe.data.manifest import MANIFEST_NAME, VideoSample, read_samples, write_manifest
from sememe.data.pair_sources import PairItems, make_pairs
from sememe.video_as_prompt.stages import find_unseen, select_conditions

SIZES = (10_000, 100_000, 1_000_000)
ENTRIES_PER_FILE = 51
"""Latents of 49 frames of 480x832 pixels, 2.6 MB each, in 128 MiB."""
_NUM_CONDITIONS, _SHAPE, _BATCH = 100, (4,), 16
_ADDED_AT_ONCE = 50_000


class _Values:
    """An array of a few bytes an entry."""

    key = "clip"

    def __init__(self, name: str) -> None:
        self.name = name
        self.made_by: Mapping[str, str] = {"autoencoder": "none"}

    def list_entries(self, items: Mapping[int, ClipItem]) -> Mapping[str, Any]:
        return {item.clip: index for index, item in items.items()}

    def preprocess(self, entries: Sequence[Any]) -> Tensor:
        return torch.zeros(len(entries), *_SHAPE)

    def encode(self, inputs: Tensor) -> Tensor:
        return inputs


def make_item(number: int) -> ClipItem:
    """A clip as a dataset has it."""
    key = hashlib.sha256(str(number).encode()).hexdigest()[:32]
    caption = f"A person in a red coat number {number} stands at the edge of a field, and light falls from the left."
    return ClipItem(
        clip=key,
        condition=f"condition {number % _NUM_CONDITIONS}",
        scene=f"videos/{number:08d}.mp4",
        first_frame=key,
        caption=caption,
        full_caption=f"{caption} Then the person turns to gold.",
    )


def make_cache(folder: Path, count: int) -> float:
    """Write a cache; return the seconds that it took."""
    start = time.perf_counter()
    items = [make_item(number) for number in range(count)]
    bytes_per_entry = 2 * int(np.prod(_SHAPE))
    writer = ArrayCacheWriter(folder, "videos", shard_bytes=ENTRIES_PER_FILE * bytes_per_entry, flush_seconds=1e9)
    for name in ("clean", "first_frame"):
        writer.begin(_Values(name))
        for begin in range(0, count, _ADDED_AT_ONCE):
            keys = [item.clip for item in items[begin : begin + _ADDED_AT_ONCE]]
            # Nobody needs these files after a power cut.
            with patch("sememe.files.flush"):
                writer.append(name, keys, torch.zeros(len(keys), *_SHAPE))
    writer.finish(items, f"{count} clips")
    return time.perf_counter() - start


def open_training(folder: Path) -> dict[str, Any]:
    """Open a cache up to the first batch, and say how long each step takes."""
    seconds: dict[str, float] = {}

    def measure(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        seconds[name] = round(time.perf_counter() - start, 3)
        return result

    cache = measure("index", lambda: ArrayCache.open(folder, memory_bytes=0))
    seen = measure("conditions", lambda: select_conditions(cache, find_unseen(cache, None), None))
    pairs = measure(
        "pairs",
        lambda: make_pairs(
            PairItems(conditions=seen.conditions, scenes=seen.scenes, buckets=seen.buckets, references=seen.references),
            same_scene_share=0.0,
        ),
    )
    batch = pairs.draw(np.random.default_rng(0), _BATCH)
    measure("batch", lambda: [seen.select("clean", each) for each in (batch.references, batch.targets)])
    return {"seconds": seconds, "total_seconds": round(sum(seconds.values()), 3)}


def go_on(folder: Path) -> dict[str, Any]:
    """Open a cache to add to it."""
    start = time.perf_counter()
    writer = ArrayCacheWriter(folder, "videos")
    num_present = len(writer.begin(_Values("clean")))
    return {"total_seconds": round(time.perf_counter() - start, 3), "num_present": num_present}


def read_list(folder: Path) -> dict[str, Any]:
    """Read the list of a dataset."""
    start = time.perf_counter()
    count = len(read_samples(folder))
    return {"total_seconds": round(time.perf_counter() - start, 3), "num_videos": count}


TASKS: dict[str, Callable[[Path], dict[str, Any]]] = {"open": open_training, "go on": go_on, "list": read_list}


def measure_size(folder: Path, count: int) -> dict[str, Any]:
    """Make what is opened, open it in a process for each task, and return a row of the result."""
    seconds = make_cache(folder, count)
    samples = [
        VideoSample(path=item.scene, caption=item.caption, condition=item.condition, sha256=item.clip * 2)
        for item in map(make_item, range(count))
    ]
    write_manifest(samples, folder / MANIFEST_NAME)
    row: dict[str, Any] = {
        "num_items": count,
        "num_files": len(list(folder.glob("*.safetensors"))),
        "index_bytes": (folder / INDEX_NAME).stat().st_size,
        "make_seconds": round(seconds, 1),
    }
    for task in TASKS:
        command = [sys.executable, "-m", "benchmarks.data_scale", "--task", task, "--folder", str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row[task] = json.loads(done.stdout.splitlines()[-1])
        peak, idle = (row[task][name] / 2**20 for name in ("peak_bytes", "idle_bytes"))
        print(f"  {count:,} {task}: {row[task]['total_seconds']:.2f} s, {peak - idle:.0f} MiB above {idle:.0f}")
    return row


def run_task(task: str, folder: Path) -> dict[str, Any]:
    """One task in this process, and the most memory before and in it."""
    idle = _read_peak()
    record = TASKS[task](folder)
    return {**record, "idle_bytes": idle, "peak_bytes": _read_peak()}


def _read_peak() -> int:
    """The most memory so far, in bytes; `resource` would count that of the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_scale", description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=SIZES, help="numbers of clips")
    parser.add_argument("--output", type=Path, default=RESULTS / "data-scale.json", help="file to write")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.task is not None:
        print(json.dumps(run_task(options.task, options.folder)))
        return 0
    record: dict[str, Any] = {"format": 1, "run": describe_run(), "entries_per_file": ENTRIES_PER_FILE, "rows": []}
    for count in options.items:
        with tempfile.TemporaryDirectory() as folder:
            record["rows"].append(measure_size(Path(folder), count))
    write_result(options.output, record)
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # of the whole process, so not in main, which tests call in theirs
    raise SystemExit(main())
