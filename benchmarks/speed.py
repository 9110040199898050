"""Time and memory of a guided step, beside the stock backbone and the official way of computing."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.contestants import Contestant, Models, encode_reference, make_contestants, make_models, run_steps
from benchmarks.footprint import count_bytes, record_bytes
from benchmarks.geometry import Geometry, make_inputs, make_stock, make_transformer
from benchmarks.timing import Expectation, Timing, expect_at_least, expect_within, time_in_turns
from sememe.compute.devices import is_fast_in_bfloat16
from sememe.compute.rehearsal import track_memory

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Report = Callable[[str], None]


@dataclass(frozen=True)
class Placement:
    """Which blocks have experts: one in `step`.

    Attributes:
        name: in words.
        step: blocks from one expert to the next.
        official_cost: of a forward the official way, in stock forwards, by precision, as it was found for the released
            code at the geometry `TRIAL`: its seconds by those of the stock backbone.
        gains: what each of ours is to gain over the official way, per guided step.
    """

    name: str
    step: int
    official_cost: dict[str, float]
    gains: dict[str, float]


PLACEMENTS = (
    Placement(
        "every block",
        1,
        {"float32": 6.30 / 2.54, "bfloat16": 4.05 / 1.40},
        {"ours, exact": 1.05, "ours, stock null": 1.45, "ours, one-way": 2.2},
    ),
    Placement(
        "one block in four",
        4,
        {"float32": 3.53 / 2.54, "bfloat16": 2.18 / 1.40},
        {"ours, exact": 1.05, "ours, stock null": 1.2, "ours, one-way": 1.4},
    ),
)
TOLERANCE = 0.05


def choose_dtypes() -> dict[str, torch.dtype]:
    """Return the precisions to measure: without bfloat16 on a CPU that emulates it, where it means nothing."""
    is_fast = is_fast_in_bfloat16(torch.device("cpu"))
    return {name: dtype for name, dtype in _DTYPES.items() if is_fast or dtype != torch.bfloat16}


def check_rival(geometry: Geometry, num_rounds: int, report: Report) -> dict[str, Any]:
    """Whether the rival costs what the released code was found to cost: only then is it one.

    Compares single forwards. The two placements and the stock backbone take turns in one run.
    """
    verdicts: dict[str, bool] = {}
    records = []
    for dtype_name, dtype in choose_dtypes().items():
        stock, given = make_stock(geometry, dtype), make_inputs(geometry, dtype)
        calls = {"stock": _make_step("stock", Models(stock, None, None, given))}
        for placement in PLACEMENTS:
            joint = make_transformer(geometry, geometry.every(placement.step), "joint", dtype)
            calls[placement.name] = _make_step("official", Models(None, joint, None, given))
        timings = time_in_turns(calls, num_rounds)
        costs = _expect_costs(dtype_name, timings)
        for found in costs:
            report(describe(found, "to within 5 %"))
        verdicts[dtype_name] = all(found.holds for found in costs)
        records.append(
            {
                "dtype": dtype_name,
                "timings": {name: timing.to_record() for name, timing in timings.items()},
                "costs": [found.to_record() for found in costs],
            }
        )
    return {"holds": verdicts, "forwards": records}


def _expect_costs(dtype_name: str, timings: dict[str, Timing]) -> list[Expectation]:
    found = []
    for placement in PLACEMENTS:
        what = f"official / stock forward, experts in {placement.name}, {dtype_name}"
        cost = placement.official_cost[dtype_name]
        found.append(expect_within(what, cost, TOLERANCE, timings[placement.name], timings["stock"]))
    return found


def measure_steps(
    geometry: Geometry, placement: Placement, dtype_name: str, num_rounds: int, report: Report
) -> dict[str, Any]:
    """Guided steps of all contestants in turns, with the peak memory of each in its first one."""
    models = make_models(geometry, geometry.every(placement.step), _DTYPES[dtype_name])
    entries = make_contestants(models)
    latents = models.inputs.latents
    calls: dict[str, Callable[[], Any]] = {}
    memory = {}
    for name, entry in entries.items():
        calls[name], memory[name] = _measure_memory(entry, latents)
    for kind, model in (("one-way", models.cached), ("two-way", models.joint)):
        calls[f"encode reference, {kind}"] = partial(encode_reference, model, models.inputs)
    timings = time_in_turns(calls, num_rounds, num_warmups=0)

    rows = []
    for name, timing in timings.items():
        row = {"name": name, **timing.to_record()}
        if name in entries:
            row |= {
                "exactness": entries[name].exactness,
                "gain_over_official": timings["official"].ratio_to(timing),
                "gain_range": timings["official"].ratio_range(timing),
                "cost_in_stock_steps": timing.ratio_to(timings["stock"]),
                **memory[name],
            }
        rows.append(row)
        report(_describe_row(name, timing, row))
    gains = _expect_gains(placement, dtype_name, timings)
    for found in gains:
        report(describe(found, "at least"))
    return {
        "placement": placement.name,
        "expert_blocks": list(geometry.every(placement.step)),
        "dtype": dtype_name,
        "geometry": asdict(geometry) | {"num_tokens": geometry.num_tokens},
        "reference_record_bytes": {
            kind: record_bytes(encode_reference(model, models.inputs))
            for kind, model in (("one-way", models.cached), ("two-way", models.joint))
        },
        "rows": rows,
        "expectations": [found.to_record() for found in gains],
    }


def _expect_gains(placement: Placement, dtype_name: str, timings: dict[str, Timing]) -> list[Expectation]:
    found = []
    for name, gain in placement.gains.items():
        what = f"official / {name}, guided step, experts in {placement.name}, {dtype_name}"
        found.append(expect_at_least(what, gain, timings["official"], timings[name]))
    return found


def _make_step(name: str, models: Models) -> Callable[[], Any]:
    """One forward of a contestant, in the loop of a generation."""
    entry = make_contestants(models, text_scale=1.0)[name]
    with torch.no_grad():
        return partial(run_steps, entry, entry.prepare(), models.inputs.latents)


def _measure_memory(entry: Contestant, latents: torch.Tensor) -> tuple[Callable[[], Any], dict[str, int]]:
    """The step, and what it took when it was done for the first time: it keeps from then on what it keeps."""
    with torch.no_grad(), track_memory() as memory:
        step = partial(run_steps, entry, entry.prepare(), latents)
        prepared = memory.peak_bytes
        memory.reset_peak()
        step()
        kept = memory.live_bytes
    return step, {
        "weight_bytes": count_bytes(entry.model),
        "kept_bytes": kept,
        "preparation_peak_bytes": prepared,
        "step_peak_bytes": memory.peak_bytes,
    }


def describe(found: Expectation, relation: str) -> str:
    verdict = "holds" if found.holds else "DOES NOT HOLD"
    return (
        f"{found.what}: {found.measured:.2f} ({found.lowest:.2f}..{found.highest:.2f}), "
        f"expected {found.expected:.2f} {relation}: {verdict}"
    )


def _describe_row(name: str, timing: Timing, row: dict[str, Any]) -> str:
    text = f"  {name:28s} {timing.median:8.3f} s"
    if "step_peak_bytes" in row:
        peak = (row["weight_bytes"] + row["step_peak_bytes"]) / 2**20
        text += f"   official takes {row['gain_over_official']:.2f} times as long   {peak:7.0f} MiB with weights"
    return text
