"""How long the steps of a long generation will take: shorter ones are timed, and operations say how time grows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from sememe.compute.rehearsal import rehearse_step
from sememe.compute.stopwatch import Stopwatch
from sememe.pipeline import SystemPipeline
from sememe.semanticgen.inputs import Request
from sememe.semanticgen.production import Production, Steps, encode_texts
from sememe.semanticgen.settings import Settings
from sememe.semanticgen.windows import WindowLayout

_DIVISORS = (64, 64, 16)
"""Parts of the length whose steps are timed; the first one also pays for what happens once."""


def estimate_seconds(pipeline: SystemPipeline, request: Request, settings: Settings) -> dict[str, float]:
    """Estimate what planning (`plan`, where a plan is made) and rendering (`latents`) will take.

    Encoding and decoding are not counted. A step of a sixteenth of the length takes a sixteenth of the time with
    windows, and less with attention over the whole video, so timing takes a small part of the estimate.

    Args:
        pipeline: Pipeline.
        request: Inputs of one result; of a source it matters only that there is one.
        settings: Settings, with the number of frames as it will be.
    """
    whole, num_frames = Production(pipeline, request, settings, []), settings.size.num_frames
    parts = [
        replace(
            whole,
            settings=settings.override(num_frames=pipeline.grid.nearest_num_frames(max(1, num_frames // divisor))),
            generators=[torch.Generator().manual_seed(0)],
        )
        for divisor in _DIVISORS
    ]
    texts, found = encode_texts(pipeline, request, settings), {}
    if whole.makes_plans:
        steps = [part.prepare_planning(texts) for part in parts]
        count = settings.sampling.num_planning_steps
        found["plan"] = count * _extend(steps, {False: whole.lay_out_plan()})
    steps = [part.prepare_rendering(texts, part.make_blank_plan()) for part in parts]
    count = settings.sampling.num_inference_steps
    return found | {"latents": count * _extend(steps, whole.lay_out_video())}


def count_operations(layout: WindowLayout, config: Any, num_text_tokens: int) -> int:
    """Count the additions and multiplications of a transformer's blocks in one forward."""
    dim = config.num_attention_heads * config.attention_head_dim
    # Each token is read by the four matrices of the self-attention, two of the cross-attention and two of the MLP.
    per_token = 2 * (6 * dim**2 + 2 * dim * config.ffn_dim)
    total = 0
    for layer in range(config.num_layers):
        for run in layout.runs(layer):
            attention = 4 * dim * (run.size + num_text_tokens)
            keys_of_text = 4 * dim**2 * num_text_tokens
            total += run.num_windows * (run.size * (per_token + attention) + keys_of_text)
    return total


def extrapolate(operations: Sequence[int], seconds: Sequence[float], wanted: int) -> float:
    """Return the seconds of so many operations, on the line through two measurements.

    Args:
        operations: Operations of the two measurements, the fewer first.
        seconds: Seconds of the two measurements.
        wanted: Operations, no fewer than those.
    """
    (fewer, more), (short, long) = operations, seconds
    if more <= fewer or long <= short:  # nothing but noise between them
        return long * wanted / more
    return long + (wanted - more) * (long - short) / (more - fewer)


def _extend(parts: Sequence[Steps], layouts: Mapping[bool, WindowLayout]) -> float:
    """Return the seconds of a step in the layouts of the whole, given the steps of parts, the first for warming up."""
    _, *seconds = (_time_step(part) for part in parts)
    operations = [_count_step(part, part.predict.layouts) for part in parts[1:]]
    return extrapolate(operations, seconds, _count_step(parts[0], layouts))


def _count_step(steps: Steps, layouts: Mapping[bool, WindowLayout]) -> int:
    predict = steps.predict
    num_text_tokens = predict.texts["positive"][0].shape[1]
    return sum(
        count_operations(layouts[row.variant.has_plan], predict.transformer.config, num_text_tokens)
        for row in steps.guidance.rows
    )


def _time_step(steps: Steps) -> float:
    watch = Stopwatch(steps.noise.device)
    rehearse_step(steps.predict, steps.guidance.groups("sequential"), steps.noise)
    watch.lap("step")
    return watch.seconds["step"]
