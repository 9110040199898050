"""The pipeline on a tiny random model: plans, windows, segments, and spans that are rendered again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semanticgen.semantic_pipelines import FPS, make_pipeline
from sememe.errors import InputError, ModelError, PlanError
from sememe.semanticgen.network_renderer import SemanticGenTransformer
from sememe.semanticgen.pipeline import SemanticGenPipeline
from sememe.semanticgen.plan_edits import cut, hold, repeat, reverse
from sememe.video import Clip
from video_as_prompt.pipeline_factories import make_clip, make_picture


@pytest.fixture(scope="module")
def pipeline() -> SemanticGenPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def made(pipeline: SemanticGenPipeline) -> Any:
    return pipeline("a red ball", generator=seeded())


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def count_forwards(network: Any) -> Iterator[list[Any]]:
    """Collect the inputs of a network's calls."""
    inputs: list[Any] = []
    handle = network.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    yield inputs
    handle.remove()


def test_a_generation_has_clip_and_plan(made: Any) -> None:
    (clip,) = made.clips
    assert (clip.num_frames, *clip.size, clip.fps) == (17, 16, 24, FPS)
    assert made.plan.features.shape == (4, 2, 3, 3)
    assert made.plan.captions == ("a red ball",) * 4
    np.testing.assert_array_equal(np.rint(made.frames[0] * 255).astype(np.uint8), clip.frames)


def test_the_seed_decides(pipeline: SemanticGenPipeline, made: Any) -> None:
    again = pipeline("a red ball", generator=seeded(), settings=made.settings)
    assert again.clips[0] == made.clips[0]
    assert pipeline("a red ball", generator=seeded(6)).clips[0] != made.clips[0]


def test_results_of_a_batch_are_those_alone(pipeline: SemanticGenPipeline, made: Any) -> None:
    both = pipeline(["a cat", "a red ball"], generator=[seeded(1), seeded()], output_type="latent")
    alone = pipeline("a red ball", generator=seeded(), output_type="latent")
    torch.testing.assert_close(both.frames[1:], alone.frames, rtol=0, atol=1e-5)
    np.testing.assert_allclose(both.plans[1].features, made.plan.features, rtol=0, atol=1e-5)


def test_a_given_plan_is_followed_as_it_is(pipeline: SemanticGenPipeline, made: Any, tmp_path: Path) -> None:
    made.plan.save(tmp_path / "a.plan")
    with count_forwards(pipeline.planner) as planning:
        given = pipeline("a cat", plan=made.plan.load(tmp_path / "a.plan"), generator=seeded())
    assert len(planning) == 0
    np.testing.assert_array_equal(given.plan.features, made.plan.features)
    assert given.clips[0].num_frames == 17
    other = pipeline("a cat", plan=reverse(made.plan), generator=seeded())
    assert other.clips[0] != given.clips[0]


def test_a_plan_decides_the_length(pipeline: SemanticGenPipeline, made: Any) -> None:
    short = cut(made.plan, 0.0, 1.0)
    assert pipeline(plan=short, generator=seeded()).clips[0].num_frames == 9
    assert pipeline(plan=short, num_frames=11, generator=seeded()).settings.size.num_frames == 13
    with pytest.raises(InputError, match=r"about 1 s, which the plan lasts, got 32 frames \(4 s\)"):
        pipeline(plan=short, seconds=4)


@pytest.mark.parametrize("what", ["plan", "source", "segments"])
def test_what_lasts_half_a_second_longer_than_usual_is_whole(
    what: str, pipeline: SemanticGenPipeline, made: Any
) -> None:
    given: dict[str, Any] = {
        "plan": hold(made.plan, 1.0, 0.5),
        "source": make_clip(num_frames=20, height=16, width=24, fps=FPS),
        "segments": [(1.5, "red"), (1.0, "melts")],
    }
    found = pipeline(**{what: given[what]}, generator=seeded())
    assert found.clips[0].num_frames == found.settings.size.num_frames == 21
    assert found.plan.num_slices == 5
    again = pipeline(**{what: given[what]}, generator=seeded(), settings=found.settings)
    assert again.clips[0] == found.clips[0]


def test_a_plan_beside_a_span_is_as_long_as_the_source(pipeline: SemanticGenPipeline, made: Any) -> None:
    source = make_clip(num_frames=65, height=16, width=24, fps=FPS)
    whole = repeat(made.plan, 4)
    assert pipeline(source=source, span=(5.0, 5.5), plan=whole, generator=seeded()).clips[0].num_frames == 65
    with pytest.raises(
        InputError, match=r"about 2 s, which the plan lasts, got 65 frames \(8.125 s\); change the plan"
    ):
        pipeline(source=source, span=(5.0, 5.5), plan=made.plan)


def test_a_source_gives_its_plan(pipeline: SemanticGenPipeline) -> None:
    source = make_clip(num_frames=30, fps=15.0)
    found = pipeline("a cat", source=source, generator=seeded())
    (plan,) = pipeline.encode_plan(source)
    np.testing.assert_array_equal(found.plan.features, plan.features)
    assert found.plan.features.shape == (4, 2, 3, 3)
    assert found.clips[0].num_frames == 17
    again = pipeline("a cat", plan=plan, generator=seeded())
    assert again.clips[0] == found.clips[0]


def test_a_source_shorter_than_a_slice_has_one(pipeline: SemanticGenPipeline) -> None:
    found = pipeline(source=make_clip(num_frames=2, fps=15.0), generator=seeded())
    assert found.plan.num_slices == 1
    assert found.clips[0].num_frames == 5


@pytest.mark.parametrize(
    ("wanted", "num_frames"), [({"num_frames": 16}, 17), ({"seconds": 3.3}, 25), ({"seconds": 0.01}, 1)]
)
def test_any_length_works(pipeline: SemanticGenPipeline, wanted: Any, num_frames: int) -> None:
    found = pipeline(**wanted, generator=seeded())
    assert found.clips[0].num_frames == found.settings.size.num_frames == num_frames


def test_windows_one_by_one_are_full_attention_where_there_is_one(pipeline: SemanticGenPipeline) -> None:
    wide = pipeline("a cat", window_seconds=100.0, generator=seeded(), output_type="latent")
    full = pipeline(
        "a cat", settings=wide.settings.override(window_seconds=50.0), generator=seeded(), output_type="latent"
    )
    narrow = pipeline("a cat", generator=seeded(), output_type="latent")
    assert torch.equal(wide.frames, full.frames)
    assert not torch.allclose(wide.frames, narrow.frames)


@pytest.mark.parametrize(
    ("scales", "per_step"),
    [((2.0, 1.0), 2), ((1.0, 1.0), 1), ((2.0, 2.0), 2), ((2.0, 1.5), 3), ((1.0, 0.0), 1), ((3.0, 0.0), 2)],
)
def test_guidance_costs_what_it_says(pipeline: SemanticGenPipeline, scales: tuple[float, float], per_step: int) -> None:
    text, plan = scales
    with count_forwards(pipeline.transformer) as rendering, count_forwards(pipeline.planner) as planning:
        found = pipeline("a cat", guidance_scale=text, plan_guidance_scale=plan, num_frames=5, generator=seeded())
    assert len(rendering) == 2 * per_step
    assert len(planning) == (4 if plan else 0)
    assert len(found.plans) == (1 if plan else 0)
    assert sum(row["weight"] for row in found.guidance) == pytest.approx(1.0)


def test_an_empty_prompt_is_no_guidance_by_text(pipeline: SemanticGenPipeline) -> None:
    with count_forwards(pipeline.transformer) as rendering, count_forwards(pipeline.planner) as planning:
        pipeline("", num_frames=5, generator=seeded())
    assert (len(rendering), len(planning)) == (2, 2)


def test_plan_noise_changes_the_result(pipeline: SemanticGenPipeline, made: Any) -> None:
    strict = pipeline("a cat", plan=made.plan, generator=seeded())
    loose = pipeline("a cat", plan=made.plan, plan_noise=1.0, generator=seeded())
    assert strict.clips[0] != loose.clips[0]
    np.testing.assert_array_equal(loose.plan.features, made.plan.features)


def test_segments_have_texts_of_their_own(pipeline: SemanticGenPipeline) -> None:
    found = pipeline("a cat", segments=[(1, "red"), (1.0, "melts")], generator=seeded())
    assert found.clips[0].num_frames == 17
    assert found.plan.captions == ("a cat red",) * 2 + ("a cat melts",) * 2
    same = pipeline("a cat", segments=[(1, "red"), (1.0, "red")], generator=seeded())
    whole = pipeline("a cat red", generator=seeded())
    np.testing.assert_allclose(same.plan.features, whole.plan.features, rtol=0, atol=1e-5)
    assert found.clips[0] != same.clips[0]


def test_each_segment_listens_to_its_own_text(pipeline: SemanticGenPipeline, made: Any) -> None:
    """Without attention between windows, a text changes its own window alone."""
    one_layer = make_pipeline()
    transformer: Any = one_layer.transformer
    del transformer.blocks[1:]
    texts = ([(1, "red"), (1.0, "melts")], [(1, "red"), (1.0, "ball")])
    first, second = (
        one_layer(plan=made.plan, segments=each, generator=seeded(), output_type="latent").frames for each in texts
    )
    assert torch.equal(first[:, :, :3], second[:, :, :3])
    assert not torch.equal(first[:, :, 3:], second[:, :, 3:])


def test_a_span_is_rendered_again_and_the_rest_stays(pipeline: SemanticGenPipeline, made: Any) -> None:
    again = pipeline("a cat", source=made.clips[0], span=(1.0, 1.5), generator=seeded(7))
    before, after = made.clips[0].frames, again.clips[0].frames
    # The third latent frame has the frames 5 to 8, which are shown around 0.875 s, and the fourth those from 9 on.
    changed = [index for index in range(17) if not np.array_equal(before[index], after[index])]
    assert changed == [9, 10, 11, 12]


def test_a_span_costs_its_own_windows_alone(pipeline: SemanticGenPipeline) -> None:
    source = make_clip(num_frames=65, height=16, width=24, fps=FPS)
    with count_forwards(pipeline.transformer) as seen:
        found = pipeline("a cat", source=source, span=(4.0, 4.5), generator=seeded())
    # The half window of the span, and a window of two half windows on each side.
    assert {latents.shape[2] for latents in seen} == {5}
    same = np.flatnonzero((found.clips[0].frames == source.frames).all(axis=(1, 2, 3)))
    assert sorted(set(range(65)) - set(same.tolist())) == [33, 34, 35, 36]


def test_decoding_piece_by_piece_is_the_clip(pipeline: SemanticGenPipeline, made: Any) -> None:
    latents = pipeline("a red ball", generator=seeded(), output_type="latent")
    assert latents.clips == []
    pieces = list(pipeline.decode(latents.frames, FPS, chunk=2))
    assert [piece.num_frames for piece in pieces] == [5, 8, 4]
    joined = np.concatenate([piece.frames for piece in pieces]).astype(int)
    assert np.abs(joined - made.clips[0].frames).max() <= 1
    with pytest.raises(InputError, match="latents of one video, got those of 2"):
        pipeline.decode(torch.cat([latents.frames] * 2), FPS)
    with pytest.raises(InputError, match="at least 1 latent frame, got 0"):
        pipeline.decode(latents.frames, FPS, chunk=0)


def test_a_picture_reaches_renderers_that_take_one() -> None:
    pipeline = make_pipeline(takes_image=True)
    without = pipeline("a cat", generator=seeded(), output_type="latent").frames
    given = pipeline("a cat", image=make_picture(), generator=seeded(), output_type="latent").frames
    assert not torch.allclose(without, given)


def test_a_plan_begins_with_the_picture() -> None:
    pipeline = make_pipeline(takes_image=True)
    without, first, second = (
        pipeline("a cat", image=image, generator=seeded()).plan.features
        for image in (None, make_picture(), np.zeros((16, 24, 3), np.uint8))
    )
    (still,) = pipeline.encode_plan(Clip.from_image(make_picture()))
    np.testing.assert_allclose(first[:1], still.features, atol=1e-6)
    # What follows is planned as a continuation: every later slice is another one.
    for other in (without, second):
        assert (np.abs(first - other).max(axis=(1, 2, 3)) > 1e-6).all()


def test_steps_are_reported_and_may_change_things(pipeline: SemanticGenPipeline) -> None:
    seen = []

    def note(_: SemanticGenPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, *tensors))
        return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}

    found = pipeline("a cat", num_frames=5, generator=seeded(), callback_on_step_end=note, output_type="latent")
    assert seen == [(0, "plan"), (1, "plan"), (0, "latents"), (1, "latents")]
    assert not found.frames.any()
    assert not found.plan.features.any()


def test_a_saved_model_makes_the_same(pipeline: SemanticGenPipeline, made: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    loaded = SemanticGenPipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    assert loaded("a red ball", generator=seeded()).clips[0] == made.clips[0]
    assert loaded.encoder.fingerprint == pipeline.encoder.fingerprint
    with pytest.raises(InputError, match="name compressor by fingerprints"):
        SemanticGenPipeline.from_pretrained(tmp_path / "model", {"compressor": torch.bfloat16})
    (tmp_path / "model" / "planner" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"planner/config\.json"):
        SemanticGenPipeline.from_pretrained(tmp_path / "model")


def list_mistakes() -> Iterator[tuple[dict[str, Any], str]]:
    clip = Clip(np.zeros((17, 16, 24, 3), np.uint8), FPS)
    yield {"seconds": 0}, "seconds above 0, got 0"
    yield {"seconds": -1.0}, "seconds above 0"
    yield {"num_frames": 0}, "num_frames of at least 1, got 0"
    yield {"num_frames": 9, "seconds": 1}, "num_frames or seconds, got both"
    yield {"segments": [(1, "a"), (0, "b")]}, "more than 0 seconds, got 1-1: b"
    yield {"segments": [(1, "a"), (1, "b")], "seconds": 8}, "which the segments last"
    yield {"image": make_picture()}, "videos from text alone"
    yield {"span": (0, 1)}, "a source with span"
    yield {"source": clip, "span": (1, 1)}, "two rising seconds"
    yield {"source": clip, "span": (2.2, 3)}, "within the source's 2.125 s"
    yield {"source": clip, "span": (0.01, 0.02)}, "centre of a latent frame"
    yield {"source": make_clip(), "span": (0, 1)}, r"expected a source of \(9, 16, 24, 8.0\)"
    yield {"prompt": 3}, "a text or a list of them as prompt, got int"
    yield {"plan": "a.plan"}, "Plan.load"
    yield {"output_type": "mp4"}, "output_type of np, pt, pil, latent"
    yield {"prompt": ["a", "b"], "source": [clip] * 3}, "one prompt per result, got 2 for 3"
    yield {"prompt": ["a", "b"], "generator": [seeded()]}, "one generator per prompt"


@pytest.mark.parametrize(("given", "message"), list(list_mistakes()))
def test_mistakes_are_named(pipeline: SemanticGenPipeline, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline(**given)


def test_plans_of_other_models_and_sizes_are_refused(pipeline: SemanticGenPipeline, made: Any) -> None:
    with pytest.raises(PlanError, match=r"\(2, 2, 3, 0.5\) rows, columns"):
        pipeline(plan=made.plan, width=16)
    other = make_pipeline()
    other.compressor.head.bias.data += 1
    with pytest.raises(PlanError, match="this model's compressor"):
        other(plan=made.plan)
    for given in ({"plan": made.plan}, {"source": made.clips[0]}):
        with pytest.raises(InputError, match=f"plan_guidance_scale 0 leaves the plan out, so that {next(iter(given))}"):
            pipeline(**given, plan_guidance_scale=0.0)


def test_the_renderer_is_of_the_room(pipeline: SemanticGenPipeline) -> None:
    assert isinstance(pipeline.transformer, SemanticGenTransformer)


def test_lora_weights_act_on_the_renderer() -> None:
    pipeline = make_pipeline()
    layer = pipeline.transformer.blocks[0].attn1.to_q
    tensors = {
        "transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, layer.in_features),
        "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.ones(layer.out_features, 2),
    }
    before = layer.weight.clone()
    pipeline.load_lora_weights(tensors, adapter_name="style")
    pipeline.set_adapters(["style"], [0.5])
    pipeline.fuse_lora()
    # Each of the two ranks adds a half everywhere.
    torch.testing.assert_close(pipeline.transformer.blocks[0].attn1.to_q.base_layer.weight, before + 1.0)
    with pytest.raises(InputError, match="style"):
        pipeline.save_pretrained("nowhere")
    with pytest.raises(ModelError, match=r"it changes blocks\.9\.to_q"):
        make_pipeline().load_lora_weights({"transformer.blocks.9.to_q.lora_A.weight": torch.ones(2, 2)})
