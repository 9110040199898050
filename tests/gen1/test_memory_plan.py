"""Memory plans of Gen-1: what a generation takes, and that a placed pipeline makes the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend

from gen1.model_factories import make_motion_pipeline, make_pipeline, make_source
from sememe.compute.rehearsal import measure_peak
from sememe.compute.strategy import Candidate, Constraints, Estimate, MemoryPlan, Strategy
from sememe.errors import InputError
from sememe.gen1.pipeline import Gen1Pipeline

SIZE: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 2}
SCALES: dict[str, Any] = {"guidance_scale": 2.0, "temporal_guidance_scale": 1.5}
MAKERS = {"inflated": make_pipeline, "motion": make_motion_pipeline}


def generate(pipeline: Gen1Pipeline, **given: Any) -> np.ndarray:
    steps: dict[str, Any] = {"num_inference_steps": 1, "prior_num_inference_steps": 1}
    given |= {"source": make_source(2, 32, 32), "content": "gold", "generator": torch.Generator().manual_seed(0)}
    with attention_backend("native"):  # tests before may have chosen another for the whole process
        clips = pipeline(**given, **SCALES, **steps).clips
    frames: np.ndarray = clips[0].frames
    return frames


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_generation_takes_what_is_planned(make: Callable[..., Gen1Pipeline], tmp_path: Path) -> None:
    pipeline = make(tmp_path)
    estimate = pipeline.make_planner("a model", **SIZE, **SCALES).estimate(Strategy("float32"))
    assert list(estimate.phases) == ["structure", "content", "prepare", "denoise", "decode"]
    # With a given structure, for the depth network takes the most of all here.
    measured = measure_peak(lambda: generate(pipeline, structure=make_source(2, 32, 32)))
    planned = {name: phase.tensors for name, phase in estimate.phases.items()}
    computed = max(planned[name] for name in ("content", "prepare", "denoise", "decode"))
    assert computed == pytest.approx(measured, rel=0.02), planned
    assert planned["structure"] == pytest.approx(measure_peak(lambda: generate(pipeline)), rel=0.02)


@pytest.mark.parametrize(
    ("kind", "offload"),
    [("inflated", "group"), ("inflated", "sequential"), ("motion", "model")],
)
def test_a_placed_pipeline_makes_the_same(kind: str, offload: Any, tmp_path: Path) -> None:
    pipeline = MAKERS[kind](tmp_path)
    expected = generate(pipeline)
    constraints = Constraints(vram=1.0, dtypes=("float32",), own_dtype="float32")
    candidate = Candidate(Strategy("float32", offload=offload), Estimate({}, 0))
    pipeline.apply_plan(MemoryPlan("a model", {}, constraints, candidate), "cpu")
    assert np.array_equal(generate(pipeline), expected)


def test_what_a_plan_may_choose(tmp_path: Path) -> None:
    pipeline = make_motion_pipeline(tmp_path)
    assert [*pipeline.list_phases(**SIZE).offloads] == ["none", "model", "sequential"]
    with pytest.raises(InputError, match=r"this model at 32x32, 2 frames does not fit"):
        pipeline.place(1e-6, "cpu", **SIZE)
