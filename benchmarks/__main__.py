"""Runs the benchmarks of this machine's CPU: `python -m benchmarks`."""

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging

from benchmarks.footprint import count_reference_work, measure_generations, quick_size, tiny_size
from benchmarks.frames import FEW, OWN, measure_lengths
from benchmarks.geometry import QUICK, TRIAL
from benchmarks.growth import BRIEF, FULL, measure_references, measure_steps_and_beginning, measure_tokens
from benchmarks.results import RESULTS, describe_run, write_result
from benchmarks.speed import PLACEMENTS, check_rival, choose_dtypes, measure_steps

PARTS = ("rival", "steps", "reference", "memory", "growth", "frames")


def run(parts: Sequence[str], num_rounds: int, *, quick: bool) -> dict[str, Any]:
    """Measures, says what it found, and returns the record."""
    geometry = QUICK if quick else TRIAL
    record: dict[str, Any] = {
        "format": 1,
        "kind": "quick: says that everything runs, nothing about speed" if quick else "cpu",
        "run": describe_run(),
        "num_rounds": num_rounds,
        "order": "contestants take turns; first calls are left out; ratios are medians over rounds",
        "geometry": asdict(geometry) | {"num_tokens": geometry.num_tokens},
    }
    # First of all: a gain over a rival that is slower than what it stands for is none.
    measures: dict[str, Callable[[], Any]] = {
        "rival": lambda: check_rival(geometry, num_rounds, print),
        "steps": lambda: [
            measure_steps(geometry, placement, dtype, num_rounds, _begin(f"{placement.name}, {dtype}"))
            for dtype in choose_dtypes()
            for placement in PLACEMENTS
        ],
        "reference": lambda: _show(count_reference_work()),
        "memory": lambda: _show(measure_generations(quick_size() if quick else tiny_size())),
        "growth": lambda: _measure_growth(max(1, num_rounds - 1), quick=quick),
        "frames": lambda: _show(measure_lengths(FEW if quick else OWN, num_rounds)),
    }
    for part in PARTS:
        if part in parts:
            print(f"--- {part}")
            start = time.perf_counter()
            record[part] = measures[part]()
            print(f"({time.perf_counter() - start:.0f} s)")
    record["run"]["load_average_after"] = [round(load, 2) for load in os.getloadavg()]
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, at sizes that mean nothing")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some parts only")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds")
    parser.add_argument("--threads", type=int, help="of torch; as many as there are processors if left out")
    parser.add_argument("--output", type=Path, help="file to write; benchmarks/results/cpu-HOST.json if left out")
    options = parser.parse_args(arguments)
    diffusers_logging.set_verbosity_error()
    torch.set_num_threads(options.threads or _count_processors())
    record = run(options.only, options.rounds, quick=options.quick)
    output = options.output
    if output is None:
        machine = platform.machine()
        output = RESULTS / f"{'quick' if options.quick else 'cpu'}-{machine}-{torch.get_num_threads()}-threads.json"
    write_result(output, record)
    print(f"written to {output}")
    return 0


def _measure_growth(num_rounds: int, *, quick: bool) -> dict[str, Any]:
    growth = BRIEF if quick else FULL
    tokens, references = measure_tokens(growth, num_rounds), measure_references(growth, num_rounds)
    for row in [*tokens, *references]:
        times = ", ".join(f"{name} {timing['median_seconds']:.3f} s" for name, timing in row["timings"].items())
        count = f"{row['num_references']} reference(s) of " if "num_references" in row else ""
        print(f"  {count}{row['num_tokens']} tokens: {times}")
    steps = measure_steps_and_beginning(growth, num_rounds)
    for row in steps["rows"]:
        print(f"  {row['name']}: {row['seconds_once']:.3f} s once, {row['seconds_per_step']:.3f} s a step")
    return {"geometry": asdict(growth.geometry), "tokens": tokens, "references": references, "steps": steps}


def _begin(title: str) -> Callable[[str], None]:
    print(f"experts in {title}; per guided step:")
    return print


def _show(record: Any) -> Any:
    for row in record if isinstance(record, list) else [record["stock"], *record["ours"]]:
        print("  " + ", ".join(f"{name} {_shorten(name, value)}" for name, value in row.items()))
    return record


def _shorten(name: str, value: Any) -> Any:
    if name.endswith("_bytes"):
        return f"{value / 2**20:.1f} MiB"
    return f"{value:.3f}" if isinstance(value, float) else value


def _count_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    raise SystemExit(main())
