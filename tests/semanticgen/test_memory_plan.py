"""Memory plans of SemanticGen: what a generation takes, and that a placed pipeline makes the same."""

from typing import Any

import pytest
import torch

from semanticgen.semantic_pipelines import make_pipeline
from sememe.compute.rehearsal import measure_peak
from sememe.compute.strategy import Candidate, Constraints, Estimate, MemoryPlan, Strategy
from sememe.semanticgen.pipeline import SemanticGenPipeline
from sememe.video import Clip

SETTINGS: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 17, "plan_guidance_scale": 2.0}
SETTINGS |= {"num_inference_steps": 1, "num_planning_steps": 1}


@pytest.fixture(scope="module")
def pipeline() -> SemanticGenPipeline:
    return make_pipeline(**SETTINGS)


def generate(pipeline: SemanticGenPipeline, **given: Any) -> Any:
    return pipeline("a cat", generator=torch.Generator().manual_seed(0), **({"output_type": "latent"} | given)).frames


def count(pipeline: SemanticGenPipeline, **settings: Any) -> dict[str, int]:
    phases = pipeline.make_planner("a model", **settings).estimate(Strategy("float32")).phases
    return {name: phase.tensors for name, phase in phases.items()}


def test_a_generation_takes_what_is_planned() -> None:
    pipeline = make_pipeline(**SETTINGS)  # which has kept nothing of an earlier generation
    counted = count(pipeline)
    assert list(counted) == ["texts", "plan", "prepare", "denoise", "decode"]
    planned = [*counted.values()]
    # The scheduler's few numbers are not planned for.
    assert max(planned[:-1]) == pytest.approx(measure_peak(lambda: generate(pipeline)), rel=0.02)
    assert planned[-1] == pytest.approx(measure_peak(lambda: generate(pipeline, output_type="np")), rel=0.02)

    longer = count(pipeline, seconds=4.0)
    assert all(longer[name] > counted[name] for name in ("plan", "prepare", "denoise", "decode"))
    assert "plan" not in count(pipeline, plan_guidance_scale=0)


@pytest.mark.parametrize("offload", ["model", "group", "sequential"])
def test_a_placed_pipeline_makes_the_same(offload: Any, pipeline: SemanticGenPipeline) -> None:
    source = Clip(torch.zeros(17, 32, 32, 3, dtype=torch.uint8).numpy(), 8.0)
    expected = [generate(pipeline), generate(pipeline, source=source)]
    placed = make_pipeline(**SETTINGS)
    strategy = Strategy("float32", offload=offload)
    constraints = Constraints(vram=1.0, dtypes=("float32",), own_dtype="float32")
    placed.apply_plan(MemoryPlan("a model", {}, constraints, Candidate(strategy, Estimate({}, 0))), "cpu")
    assert torch.equal(generate(placed), expected[0])
    assert torch.equal(generate(placed, source=source), expected[1])
