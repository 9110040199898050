"""What a second of video costs SemanticGen's renderer, by the length of the video: `python -m benchmarks.lengths`.

One forward of the renderer with a plan, as the pipeline calls it: in windows, one at a time where there are several.
Full attention stands beside it in the same rounds. Without a model, the built-in backbone of Video-As-Prompt gets plans
of random numbers: times depend on shapes alone.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import RESULTS, describe_run, write_result
from benchmarks.timing import time_in_turns
from sememe.checkpoints.components import load_component
from sememe.checkpoints.zoo import find_part
from sememe.compute.rehearsal import measure_peak
from sememe.semanticgen.clocks import LatentClock, SliceClock
from sememe.semanticgen.network_renderer import SemanticGenTransformer
from sememe.semanticgen.pipeline import SemanticGenPipeline
from sememe.semanticgen.windows import SliceShape, WindowLayout, make_layout

FACTORS = (1, 2, 4, 8, 16)
_CLOCK, _SLICES = LatentClock(temporal_ratio=8, fps=8.0), SliceClock(fps=4.0)
_WINDOW, _SIDE = 4.0, 8


@dataclass(frozen=True)
class Renderer:
    """A renderer and the shapes that it works with.

    Attributes:
        network: The network.
        rows: Rows and columns of latents of a frame.
        plan_rows: Rows and columns of features of a slice.
    """

    network: Any
    rows: int
    plan_rows: int


def load_renderer(model: str | None) -> Renderer:
    """Load the renderer of a model, or make one of the built-in backbone."""
    if model is not None:
        network = SemanticGenPipeline.from_pretrained(model).transformer
    else:
        backbone = load_component("transformer", find_part("video-as-prompt/tiny", "transformer"))
        network = SemanticGenTransformer.from_backbone(backbone)
    return Renderer(network.eval(), _SIDE, _SIDE // 2)


def make_forward(renderer: Renderer, seconds: float, window_seconds: float | None) -> Callable[[], Any]:
    """Return one forward for a video of so many seconds."""
    config, side = renderer.network.config, renderer.rows
    num_frames = 1 + round(seconds * _CLOCK.fps / _CLOCK.temporal_ratio)
    num_slices = _SLICES.count_slices(seconds)
    grid = (num_frames, side // config.patch_size[1], side // config.patch_size[2])
    plan = SliceShape(_SLICES.times(num_slices), renderer.plan_rows, renderer.plan_rows)
    layout: WindowLayout = make_layout(_CLOCK, grid, plan, window_seconds=window_seconds)
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(1, config.in_channels, num_frames, side, side, generator=random)
    text = torch.randn(1, 32, config.text_dim, generator=random)
    features = torch.randn(1, num_slices, renderer.plan_rows, renderer.plan_rows, config.semantic_dim, generator=random)
    return partial(
        renderer.network,
        latents,
        torch.tensor([500.0]),
        (text,),
        semantic=features,
        layout=layout,
        one_by_one=window_seconds is not None and seconds > window_seconds,
    )


def measure_lengths(renderer: Renderer, factors: Sequence[int], num_rounds: int) -> list[dict[str, Any]]:
    """Return seconds of computing per second of video, and peak memory, of each length and way to attend."""
    calls = {
        (factor, way): make_forward(renderer, factor * _WINDOW, window)
        for factor in factors
        for way, window in (("windows", _WINDOW), ("full", None))
    }
    timings = time_in_turns({f"{factor} {way}": call for (factor, way), call in calls.items()}, num_rounds)
    rows = []
    for (factor, way), call in calls.items():
        timing = timings[f"{factor} {way}"]
        rows.append(
            {
                "factor": factor,
                "attention": way,
                "seconds_of_video": factor * _WINDOW,
                "per_second_of_video": timing.median / (factor * _WINDOW),
                "peak_bytes": measure_peak(call),
                **timing.to_record(),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lengths", description=__doc__)
    parser.add_argument("--model", help="SemanticGen model; without it the built-in backbone")
    parser.add_argument("--factors", type=int, nargs="+", default=FACTORS, help="lengths, in windows of 4 s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "lengths.json")
    given = parser.parse_args(arguments)
    rows = measure_lengths(load_renderer(given.model), given.factors, given.rounds)
    write_result(given.output, {"format": 1, "run": describe_run(), "model": given.model, "rows": rows})
    for row in rows:
        cost, peak = 1000 * row["per_second_of_video"], row["peak_bytes"] / 1e6
        print(
            f"{row['factor']:>3}x {row['attention']:<8} {cost:7.1f} ms per second of video in the median, "
            f"{peak:7.1f} MB at the peak"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
