"""How long a generation will take: operations, and the arithmetic from steps that were timed. No test reads a clock."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from semanticgen.renderer_factories import lay_out, make_features, make_renderer, make_target
from semanticgen.semantic_pipelines import make_pipeline
from sememe.semanticgen import durations
from sememe.semanticgen.durations import count_operations, extrapolate
from sememe.semanticgen.inputs import make_request
from sememe.semanticgen.production import Production, Steps, encode_texts, wrap_plans


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 2.0])
def test_operations_are_those_of_the_blocks(window: float | None) -> None:
    layout, renderer, target = lay_out(9, 16, window_seconds=window), make_renderer(), make_target(9, batch_size=1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        renderer(**target, semantic=make_features(16, batch_size=1), layout=layout, one_by_one=window is not None)
    counts = counter.get_flop_counts()
    blocks = sum(sum(counts[f"SemanticGenTransformer.blocks.{place}"].values()) for place in range(3))
    assert count_operations(layout, renderer.config, target["encoder_hidden_states"].shape[1]) == blocks


def test_times_lie_on_the_line_through_two() -> None:
    assert extrapolate((10, 20), (1.0, 1.5), 100) == 5.5
    # Where the longer one took no longer, all is by its operations.
    assert extrapolate((10, 20), (1.0, 1.0), 40) == 2.0
    assert extrapolate((10, 10), (1.0, 1.5), 40) == 6.0


def test_steps_of_parts_tell_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are really taken; what they take is made up, by their operations and a second for each."""
    take, taken = durations._time_step, []

    def count(steps: Steps) -> float:
        take(steps)
        taken.append(durations._count_step(steps, steps.predict.layouts))
        return 1.0 + taken[-1] / 1e6

    monkeypatch.setattr(durations, "_time_step", count)
    pipeline = make_pipeline(num_planning_steps=3)
    settings, request = pipeline.defaults.override(num_frames=513), make_request("a cat")
    found = pipeline.estimate_seconds(request, settings)
    assert len(taken) == 6
    work = Production(pipeline, request, settings, [torch.Generator().manual_seed(0)])
    texts = encode_texts(pipeline, request, settings)
    steps = (work.prepare_planning(texts), work.prepare_rendering(texts, work.make_blank_plan()))
    plan, video = (1 + durations._count_step(each, each.predict.layouts) / 1e6 for each in steps)
    assert found == {"plan": pytest.approx(3 * plan), "latents": pytest.approx(2 * video)}
    (given,) = wrap_plans(pipeline, work.make_blank_plan())
    assert pipeline.estimate_seconds(make_request("a cat", given), settings).keys() == {"latents"}
