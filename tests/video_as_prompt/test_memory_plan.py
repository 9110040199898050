"""Plans for whole generations: what they take on the CPU, and that a placed pipeline makes the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan

from compute.counted_weights import count_device
from sememe.compute.rehearsal import measure_peak
from sememe.compute.speed import is_compiled
from sememe.compute.strategy import Candidate, Constraints, Estimate, MemoryPlan, Strategy
from sememe.errors import InputError
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline

SIZE: dict[str, Any] = {"height": 64, "width": 96, "num_frames": 5}
SCALES: dict[str, Any] = {"guidance_scale": 3.0, "reference_guidance_scale": 2.0}


def make_wan(mode: str) -> VideoAsPromptPipeline:
    pipeline = make_pipeline(mode)
    # As wide as it takes for its own tensors, and not those of pictures on the CPU, to be the most.
    vae = AutoencoderKLWan(base_dim=16, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    pipeline.register_modules(vae=vae.eval())
    return pipeline


def make_cogvideox() -> VideoAsPromptPipeline:
    pipeline = make_cogvideox_pipeline()
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(16, 32, 32, 64), layers_per_block=1, latent_channels=4, norm_num_groups=4
    )
    pipeline.register_modules(vae=vae.eval())
    return pipeline


def generate(pipeline: VideoAsPromptPipeline, **settings: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    inputs: dict[str, Any] = {"image": make_picture(), "references": [make_clip()], "prompt": "a cat"}
    return pipeline(**(inputs | {"generator": generator, "output_type": "latent"} | SIZE | SCALES | settings))


@pytest.mark.parametrize(
    ("make", "num_frames"),
    [(lambda: make_wan("cached"), 5), (lambda: make_wan("joint"), 5), (make_cogvideox, 9)],
    ids=["wan one-way", "wan two-way", "cogvideox"],
)
def test_a_generation_takes_what_is_planned(make: Callable[[], VideoAsPromptPipeline], num_frames: int) -> None:
    pipeline = make()
    length = {"num_frames": num_frames}
    planner = pipeline.make_planner("a model", **(SIZE | SCALES | length))
    estimate = planner.estimate(Strategy("float32"))
    measured = measure_peak(lambda: generate(pipeline, output_type="np", **length))
    # The scheduler's few numbers are not planned for.
    assert max(phase.tensors for phase in estimate.phases.values()) == pytest.approx(measured, rel=1e-3)


# In groups a plan counts the autoencoder whole, which comes in parts, and the next block, which no CPU fetches ahead.
@pytest.mark.parametrize(("offload", "low"), [("model", 0.98), ("sequential", 0.97), ("group", 0.6)])
def test_weights_come_and_go_as_planned(offload: Any, low: float) -> None:
    pipeline = make_wan("joint")
    strategy = Strategy("float32", offload=offload, keeps_text_keys=offload != "group")
    planned = pipeline.make_planner("a model", **(SIZE | SCALES)).estimate(strategy).peak
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch, count_device(pipeline, patch, offload) as device:
        generate(pipeline, output_type="np")
        assert low * planned < device.peak_bytes < 1.02 * planned


def test_settings_that_take_more() -> None:
    pipeline = make_pipeline("joint", "linear")

    def count(**settings: Any) -> int:
        planner = pipeline.make_planner("a model", **(SIZE | SCALES | settings))
        return planner.estimate(Strategy("float32")).phases["denoise"].tensors

    plain = count()
    for settings in ({"num_references": 2}, {"num_reference_frames": 9}, {"batching": "batched"}, {"num_frames": 9}):
        assert count(**settings) > plain, settings
    for settings in ({"num_references": 0}, {"reference_downscale": 2}):
        assert count(**settings) < plain, settings
    assert count(num_negative_references=1) > plain
    with pytest.raises(InputError, match="height"):
        count(height=63)


def test_what_a_plan_may_choose() -> None:
    def names(pipeline: Any, **settings: Any) -> set[tuple[str, Any, Any]]:
        return {(each.name, each.tiles, each.keeps_text_keys) for each in pipeline.list_phases(**settings).phases}

    wan = names(make_pipeline(vae="wan"))
    assert {("denoise", None, True), ("denoise", None, False), ("decode", False, None), ("decode", True, None)} < wan
    assert ("denoise", None, False) not in names(make_pipeline(), text_keys="kept")
    assert ("denoise", None, True) not in names(make_pipeline(), text_keys="recomputed")
    assert ("decode", None, None) in names(make_pipeline(vae="linear"))
    assert ("denoise", None, None) in names(make_cogvideox_pipeline())
    assert ("inputs", False, None) in names(make_pipeline(vae="wan", in_channels=4))


@pytest.mark.parametrize(
    "strategy",
    [
        Strategy("float32", offload="model", keeps_text_keys=False),
        Strategy("float32", offload="group", keeps_text_keys=False),
        Strategy("float32", offload="group-leaf", keeps_text_keys=False),
        Strategy("float32", offload="sequential"),
    ],
    ids=str,
)
def test_a_placed_pipeline_makes_the_same(strategy: Strategy) -> None:
    plain = generate(make_pipeline()).frames
    pipeline = make_pipeline()
    constraints = Constraints(vram=1.0, dtypes=("float32",), own_dtype="float32")
    pipeline.apply_plan(MemoryPlan("a model", {}, constraints, Candidate(strategy, Estimate({}, 0))), "cpu")
    placed = generate(pipeline)
    assert torch.equal(placed.frames, plain)
    assert placed.settings.execution.text_keys == ("kept" if strategy.keeps_text_keys else "recomputed")


def test_place_chooses_by_the_card() -> None:
    pipeline = make_pipeline()
    plan = pipeline.place(8.0, "cpu", **SIZE)
    assert (plan.strategy, plan.shortcuts) == (Strategy("float32"), [])
    peak = plan.chosen.estimate.peak
    smaller = pipeline.place((peak - 1) / 1e9, "cpu", **SIZE)
    assert smaller.strategy.offload != "none" or smaller.strategy.keeps_text_keys is False
    with pytest.raises(InputError, match=r"the least that would do is"):
        make_pipeline().place(1e-6, "cpu", **SIZE)


def test_place_stores_in_fewer_bits() -> None:
    pipeline = make_pipeline()
    plan = pipeline.place(8.0, "cpu", storage="fp8", **SIZE)
    assert plan.shortcuts == ["weights stored as fp8"]
    weights = {parameter.dtype for parameter in pipeline.transformer.blocks.parameters()}
    assert torch.float8_e4m3fn in weights


def test_compile_is_a_method() -> None:
    pipeline = make_pipeline()
    pipeline.compile(backend="eager")
    assert is_compiled(pipeline.transformer)
