"""The same comparison on an accelerator, at the released geometries: `python -m benchmarks.gpu`."""

import argparse
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contestants import Contestant, Models, make_contestants, run_steps
from benchmarks.footprint import count_bytes, make_parts, quick_size
from benchmarks.geometry import AttentionMode, StepInputs
from benchmarks.gpu_models import Case, fit_layers, make_case_inputs, make_model, native_layers, see_as, share_weights
from benchmarks.results import RESULTS, describe_run, write_result
from benchmarks.timing import time_in_turns, time_once
from sememe.compute.placement import apply_offload
from sememe.compute.rehearsal import track_memory
from sememe.compute.speed import compile_transformer, list_usable_attention, set_attention
from sememe.errors import SememeError
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline

PARTS = ("steps", "attention", "compile", "offload")
OFFLOADS = ("none", "model", "group", "sequential")
PEAK_TFLOPS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "4090": 165.0}
"""Dense bfloat16, as the makers state it; of the first name that is part of the device's."""


class Bench:
    """Measures one case on one device."""

    def __init__(self, case: Case, device: str, dtype: torch.dtype, num_rounds: int, peak_tflops: float | None) -> None:
        self.case, self.device, self.dtype = case, device, dtype
        self.num_rounds, self.peak_tflops = num_rounds, peak_tflops

    def run(self, parts: Sequence[str]) -> dict[str, Any]:
        """Each part by name; one that fails says why, and the others go on."""
        model, given = make_model(self.case, self.dtype, self.device), self._make_inputs()
        measures: dict[str, Callable[[], Any]] = {
            "steps": lambda: self.measure_steps(model, given),
            "attention": lambda: self.measure_attention(model, given),
            "compile": lambda: self.measure_compiled(model, given),
        }
        record = {part: self._try(part, measures[part]) for part in PARTS if part in parts and part in measures}
        record["weight_bytes"] = count_bytes(model)
        measures.clear()
        del model
        if "offload" in parts:
            record["offload"] = {kind: self._try(kind, partial(self.measure_offload, kind)) for kind in OFFLOADS}
        return record

    def measure_steps(self, model: Any, given: StepInputs) -> list[dict[str, Any]]:
        """Guided steps of all contestants: time in turns, memory each by itself, and the share of the peak rate."""
        entries = make_contestants(share_weights(model, given))
        memory, operations = {}, {}
        for name, entry in entries.items():
            memory[name], operations[name] = self._measure_alone(entry, given)
        timings = time_in_turns(self._prepare(entries, given), self.num_rounds, self.device)
        rows = []
        for name, timing in timings.items():
            rate = operations[name] / timing.median
            row: dict[str, Any] = {"name": name, "exactness": entries[name].exactness, **timing.to_record()}
            row |= {"step_peak_bytes": memory[name], "operations": operations[name], "tflops": rate / 1e12}
            row["model_flops_utilisation"] = None if self.peak_tflops is None else rate / 1e12 / self.peak_tflops
            if "official" in timings:
                row["gain_over_official"] = timings["official"].ratio_to(timing)
            row["cost_in_stock_steps"] = timing.ratio_to(timings["stock"])
            rows.append(row)
            print(f"  {name:20s} {timing.median:8.3f} s   {row['tflops']:.1f} TFLOP/s   {_mebibytes(memory[name])}")
        return rows

    def measure_attention(self, model: Any, given: StepInputs) -> list[dict[str, Any]]:
        """Every attention backend that works here: time, and distance from `native` relative to the largest output."""
        pipeline, entries = self._make_pipeline(model), self._choose(model, given)
        set_attention(pipeline, "native")
        step = self._prepare(entries, given)["ours, exact"]
        expected, rows = step(), []
        for name in list_usable_attention(pipeline):
            set_attention(pipeline, name)
            row: dict[str, Any] = {"backend": name, "exactness": "approximate" if "sage" in name else "exact"}
            found = self._try(
                name,
                lambda: float(
                    (self._prepare(entries, given)["ours, exact"]() - expected).abs().max() / expected.abs().max()
                ),
            )
            if isinstance(found, float):
                timings = time_in_turns(self._prepare(entries, given), self.num_rounds, self.device)
                row |= {"largest_deviation": found, **{key: value.to_record() for key, value in timings.items()}}
                print(f"  {name:20s} {timings['ours, exact'].median:8.3f} s   deviation {found:.1e}")
            else:
                row |= found
            rows.append(row)
        set_attention(pipeline, "native")
        return rows

    def measure_compiled(self, model: Any, given: StepInputs) -> list[dict[str, Any]]:
        """Blocks compiled: what the first step costs, and the later ones, which must compile nothing any more."""
        from torch._dynamo.utils import counters

        compile_transformer(self._make_pipeline(model))
        entries = self._choose(model, given)
        calls = self._prepare(entries, given)
        with torch.no_grad():
            first = {name: time_once(call, self.device) for name, call in calls.items()}
        num_graphs = counters["stats"]["unique_graphs"]
        timings = time_in_turns(calls, self.num_rounds, self.device)
        rows = []
        for name, timing in timings.items():
            rows.append({"name": name, "first_step_seconds": first[name], **timing.to_record()})
            print(f"  {name:20s} {timing.median:8.3f} s, the first {first[name]:.1f} s")
        return [
            *rows,
            {"num_graphs": num_graphs, "num_recompilations": counters["stats"]["unique_graphs"] - num_graphs},
        ]

    def measure_offload(self, kind: str) -> list[dict[str, Any]]:
        """One kind of offload, two-way and one-way: time and peak memory of a guided step."""
        rows = []
        runs: list[tuple[str, AttentionMode, tuple[str, ...]]] = [
            ("ours, exact", "joint", ()),
            ("ours, one-way", "cached", ()),
            ("ours, one-way", "cached", ("expert",)),
        ]
        for name, mode, offloaded in runs:
            if offloaded and kind not in ("none", "model"):
                continue
            # Made on the device, which is fast at random numbers, and moved to where offloaded weights begin.
            model = see_as(make_model(self.case, self.dtype, self.device).to("cpu"), mode)
            apply_offload(self._make_pipeline(model), kind, self.device, parts=offloaded)
            given = self._make_inputs()
            parts: dict[str, Any] = {"stock": None, "joint": None, "cached": None, mode: model}
            entry = make_contestants(Models(**parts, inputs=given))[name]
            with torch.no_grad(), self._watch_memory() as peak:
                step = partial(run_steps, entry, entry.prepare(), given.latents)
                step()
            timing = time_in_turns({name: step}, self.num_rounds, self.device, num_warmups=0)[name]
            row = {"name": name, "parts": list(offloaded), "peak_bytes": peak(), **timing.to_record()}
            rows.append(row)
            print(f"  {kind}, {name} {offloaded or ''}: {timing.median:.3f} s, {_mebibytes(row['peak_bytes'])}")
            del model, parts, entry, step
            self._free()
        return rows

    def _measure_alone(self, entry: Contestant, given: StepInputs) -> tuple[int, int]:
        """Bytes at the peak of a first step, and operations of the next."""
        self._free()
        with torch.no_grad():
            with self._watch_memory() as peak:
                step = partial(run_steps, entry, entry.prepare(), given.latents)
                step()
            with FlopCounterMode(display=False) as counter:
                step()
        return peak(), counter.get_total_flops()

    def _prepare(self, entries: dict[str, Contestant], given: StepInputs) -> dict[str, Callable[[], torch.Tensor]]:
        with torch.no_grad():
            return {name: partial(run_steps, entry, entry.prepare(), given.latents) for name, entry in entries.items()}

    def _choose(self, model: Any, given: StepInputs) -> dict[str, Contestant]:
        """Those whose attention and blocks are the transformer's own."""
        entries = make_contestants(share_weights(model, given))
        return {name: entry for name, entry in entries.items() if name != "official"}

    def _make_inputs(self) -> StepInputs:
        return make_case_inputs(self.case, self.dtype, self.device)

    def _make_pipeline(self, model: Any) -> Any:
        """A pipeline whose other components are as good as nothing."""
        return VideoAsPromptPipeline(**make_parts(quick_size()), transformer=model)

    @contextmanager
    def _watch_memory(self) -> Iterator[Callable[[], int]]:
        if not self.device.startswith("cuda"):
            with track_memory() as memory:
                yield lambda: memory.peak_bytes
            return
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        yield torch.cuda.max_memory_allocated

    def _try(self, what: str, measure: Callable[[], Any]) -> Any:
        try:
            return measure()
        except (RuntimeError, SememeError, ValueError) as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"  {what} failed: {reason}")
            return {"failed": reason}
        finally:
            self._free()

    def _free(self) -> None:
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--families", nargs="+", choices=("wan", "cogvideox"), default=("wan", "cogvideox"))
    parser.add_argument("--experts", nargs="+", choices=("released", "every"), default=("released",))
    parser.add_argument("--layers", type=int, help="blocks; as many as the released model if left out, or as fit")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some parts only")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds")
    parser.add_argument("--peak-tflops", type=float, help="of the device in this precision; known of some if left out")
    parser.add_argument("--quick", action="store_true", help="sizes that say nothing about speed; also on a CPU")
    parser.add_argument("--output", type=Path, help="file to write; benchmarks/results/gpu-NAME.json if left out")
    options = parser.parse_args(arguments)
    diffusers_logging.set_verbosity_error()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --quick shows that the script runs")
    record: dict[str, Any] = {"format": 1, "kind": "quick" if options.quick else "gpu"}
    record |= {"run": describe_run(options.device), "dtype": options.dtype, "num_rounds": options.rounds, "cases": []}
    # Asked of the device, all that is on it counts; on a CPU, the tensors that were made meanwhile.
    record["peaks_include_weights"] = options.device.startswith("cuda")
    for family in options.families:
        for experts in options.experts:
            print(f"--- {family}, experts {experts}")
            record["cases"].append(_run_case(family, experts, options))
    output = options.output or RESULTS / f"gpu-{_device_name(options.device).replace(' ', '-')}.json"
    write_result(output, record)
    print(f"written to {output}")
    return 0


def _run_case(family: str, experts: str, options: argparse.Namespace) -> dict[str, Any]:
    native = native_layers(family, is_quick=options.quick)
    case = Case(family=family, experts=experts, num_layers=options.layers or native, is_quick=options.quick)
    dtype: torch.dtype = getattr(torch, options.dtype)
    if options.device.startswith("cuda"):
        memory = torch.cuda.get_device_properties(options.device).total_memory
        case = replace(case, num_layers=fit_layers(case, memory, dtype.itemsize))
    if case.num_layers != native:
        print(f"  {case.num_layers} of {native} layers: all do not fit, or fewer were asked for")
    peak = options.peak_tflops or _find_peak(_device_name(options.device), options.dtype)
    found = Bench(case, options.device, dtype, options.rounds, peak).run(options.only)
    about = asdict(case) | {"native_layers": native, "expert_blocks": list(case.expert_blocks), "peak_tflops": peak}
    return about | found


def _find_peak(name: str, dtype: str) -> float | None:
    found = [rate for part, rate in PEAK_TFLOPS.items() if part in name]
    return found[0] if found and dtype != "float32" else None


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"


if __name__ == "__main__":
    raise SystemExit(main())
