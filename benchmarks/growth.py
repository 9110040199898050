"""How the cost of a generation grows with tokens, references and steps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.contestants import Contestant, Models, make_contestants, run_steps
from benchmarks.geometry import QUICK, TRIAL, Geometry, make_inputs, make_stock, make_transformer
from benchmarks.timing import Timing, time_in_turns


@dataclass(frozen=True)
class Growth:
    """What is varied, on a transformer of fewer blocks with an expert in each.

    Attributes:
        geometry: what is not varied.
        grids: (rows, columns) of tokens.
        reference_grid: of the runs with several references.
        num_references: numbers of them.
        step_grid: of the runs with several steps.
        num_steps: numbers of them.
    """

    geometry: Geometry
    grids: tuple[tuple[int, int], ...]
    reference_grid: tuple[int, int]
    num_references: tuple[int, ...]
    step_grid: tuple[int, int]
    num_steps: tuple[int, ...]


FULL = Growth(
    replace(TRIAL, num_layers=4), ((5, 8), (7, 11), (10, 16), (12, 20)), (7, 11), (1, 2, 3), (5, 8), (1, 2, 4)
)
BRIEF = Growth(replace(QUICK, num_layers=2), ((2, 3), (3, 4)), (2, 3), (1, 2), (2, 3), (1, 2))


def measure_tokens(growth: Growth, num_rounds: int) -> list[dict[str, Any]]:
    """Seconds of one forward by number of tokens; the reference has as many as the target."""
    rows = []
    for grid in growth.grids:
        geometry = _with_grid(growth.geometry, grid)
        timings = time_in_turns(_make_forwards(_make_models(geometry)), num_rounds)
        rows.append({"num_tokens": geometry.num_tokens, **_to_records(timings)})
    return rows


def measure_references(growth: Growth, num_rounds: int) -> list[dict[str, Any]]:
    """Seconds of one forward by number of references. The official way on Wan takes one, so it is left out."""
    rows = []
    for count in growth.num_references:
        geometry = replace(_with_grid(growth.geometry, growth.reference_grid), num_references=count)
        calls = _make_forwards(_make_models(geometry))
        calls.pop("official", None)
        timings = time_in_turns(calls, num_rounds)
        rows.append({"num_references": count, "num_tokens": geometry.num_tokens, **_to_records(timings)})
    return rows


def measure_steps_and_beginning(growth: Growth, num_rounds: int) -> dict[str, Any]:
    """Seconds of guided denoising by number of steps, what is done once included, and both parts of it by a fit."""
    geometry = _with_grid(growth.geometry, growth.step_grid)
    models = _make_models(geometry)
    entries = make_contestants(models)
    calls = {
        f"{name} / {count}": partial(_generate, entry, models, count)
        for count in growth.num_steps
        for name, entry in entries.items()
    }
    timings = time_in_turns(calls, num_rounds)
    rows = []
    for name in entries:
        medians = [timings[f"{name} / {count}"].median for count in growth.num_steps]
        per_step, once = np.polyfit(growth.num_steps, medians, 1).tolist()
        rows.append(
            {
                "name": name,
                "median_seconds": dict(zip(map(str, growth.num_steps), medians, strict=True)),
                "seconds_per_step": per_step,
                "seconds_once": once,
            }
        )
    return {"num_tokens": geometry.num_tokens, "rows": rows}


def _generate(entry: Contestant, models: Models, num_steps: int) -> torch.Tensor:
    return run_steps(entry, entry.prepare(), models.inputs.latents, num_steps)


def _make_models(geometry: Geometry) -> Models:
    experts = geometry.every(1)
    joint, cached = (make_transformer(geometry, experts, "joint"), make_transformer(geometry, experts, "cached"))
    return Models(make_stock(geometry), joint, cached, make_inputs(geometry))


def _make_forwards(models: Models) -> dict[str, Callable[[], Any]]:
    """One forward each, what is done once excluded."""
    entries = make_contestants(models, text_scale=1.0)
    # With one forward a step, the null has no part in it.
    entries.pop("ours, stock null")
    latents = models.inputs.latents
    calls: dict[str, Callable[[], Any]] = {}
    with torch.no_grad():
        for name, entry in entries.items():
            if name == "official" and len(models.inputs.reference.latents) > 1:
                continue
            calls[name] = partial(run_steps, entry, entry.prepare(), latents)
    return calls


def _with_grid(geometry: Geometry, grid: tuple[int, int]) -> Geometry:
    return replace(geometry, rows=grid[0], columns=grid[1])


def _to_records(timings: dict[str, Timing]) -> dict[str, Any]:
    return {"timings": {name: timing.to_record() for name, timing in timings.items()}}
