"""Text and reference guidance: the rows of the table, and guidance that changes from step to step."""

from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from hypothesis import given
from hypothesis import strategies as st

from sememe.diffusion.guidance import Guidance, combine
from sememe.errors import InputError, ModelError
from sememe.video_as_prompt.guidance import Variant, dynamic_guidance_scale, video_as_prompt_guidance
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.settings import Settings
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline

PLAIN_NEGATIVE = Variant("negative", "none")
SEEN_NEGATIVE = Variant("negative", "given")
SEEN_POSITIVE = Variant("positive", "given")
PLAIN_POSITIVE = Variant("positive", "none")


# With 4 steps and a shift of 3 the timesteps are 1000, 900, 750 and 500.
GUIDED: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "reference_guidance_scale": 4.0}


def generate(pipe: VideoAsPromptPipeline, **changes: Any) -> torch.Tensor:
    arguments: dict[str, Any] = {"image": make_picture(), "references": [make_clip()], "output_type": "latent"}
    return pipe(**(arguments | {"generator": torch.Generator().manual_seed(1)} | changes)).frames


@pytest.mark.parametrize("batching", ["sequential", "batched"])
def test_forwards_are_saved_where_guidance_does_not_act(batching: str) -> None:
    pipe = make_pipeline(batching=batching, negative_prompt="blurry", **GUIDED)
    calls: list[float] = []
    pipe.transformer.proj_out.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[0]))
    always = generate(pipe)
    num_guided = 3 if batching == "sequential" else 2
    assert len(calls) == 4 * num_guided
    calls.clear()
    assert torch.equal(generate(pipe, guidance_interval=(0.0, 1.0)), always)
    calls.clear()
    limited = generate(pipe, guidance_interval=(0.8, 1.0))
    assert len(calls) == 2 * num_guided + 2
    assert not torch.allclose(limited, always, atol=1e-5)
    calls.clear()
    assert not torch.allclose(generate(pipe, guidance_interval=(0.6, 0.95)), limited, atol=1e-5)
    assert len(calls) == 2 * num_guided + 2


@pytest.mark.parametrize("make", [make_pipeline, make_cogvideox_pipeline])
def test_where_guidance_never_acts_it_is_off(make: Any) -> None:
    pipe = make(negative_prompt="blurry", **GUIDED)
    never = generate(pipe, guidance_interval=(0.001, 0.002))
    assert torch.equal(never, generate(pipe, guidance_scale=1.0, reference_guidance_scale=1.0))
    alone = generate(pipe, guidance_interval=(0.001, 0.002), reference_guidance_scale=0.0)
    assert torch.equal(alone, generate(pipe, guidance_scale=1.0, reference_guidance_scale=0.0))


def test_it_is_a_setting_of_a_model() -> None:
    pipe = make_pipeline(guidance_interval=[0.8, 1.0], **GUIDED)
    assert pipe.defaults.guidance.guidance_interval == (0.8, 1.0)
    assert Settings.from_config(pipe.defaults.to_config()) == pipe.defaults
    assert torch.equal(generate(pipe), generate(make_pipeline(**GUIDED), guidance_interval=(0.8, 1.0)))


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.9, 0.1), (-0.1, 1.0), (0.0, 1.1), (0.5,), (float("nan"), 1.0)])
def test_what_is_no_interval_is_refused(interval: Any) -> None:
    with pytest.raises(InputError, match="guidance_interval"):
        generate(make_pipeline(), guidance_interval=interval)


def test_a_scale_of_0_is_off_as_in_diffusers() -> None:
    assert Settings().override(guidance_scale=0.0) == Settings().override(guidance_scale=1.0)


def test_text_guidance_that_is_off_leaves_the_negative_prompt_out() -> None:
    pipe = make_pipeline(**(GUIDED | {"guidance_scale": 1.0}))
    assert torch.equal(generate(pipe, negative_prompt="blurry"), generate(pipe, negative_prompt=""))


def test_a_feature_cache_wants_equal_steps() -> None:
    pipe = make_pipeline(**GUIDED)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ModelError, match="same forwards at every step"):
        generate(pipe, guidance_interval=(0.5, 1.0))


def weights_of(guidance: Guidance[Variant]) -> dict[Variant, float]:
    return {row.variant: row.weight for row in guidance.rows}


def test_three_way_weights() -> None:
    guidance = video_as_prompt_guidance(guidance_scale=5.0, reference_guidance_scale=3.0)
    assert weights_of(guidance) == {PLAIN_NEGATIVE: -2.0, SEEN_NEGATIVE: -2.0, SEEN_POSITIVE: 5.0}


@pytest.mark.parametrize(
    ("text_scale", "reference_scale", "texts_differ", "expected"),
    [
        (1.0, 1.0, True, {SEEN_POSITIVE: 1.0}),
        (1.0, 1.0, False, {SEEN_POSITIVE: 1.0}),
        (5.0, 1.0, True, {SEEN_NEGATIVE: -4.0, SEEN_POSITIVE: 5.0}),
        (5.0, 1.0, False, {SEEN_POSITIVE: 1.0}),
        (1.0, 4.0, True, {PLAIN_NEGATIVE: -3.0, SEEN_NEGATIVE: 3.0, SEEN_POSITIVE: 1.0}),
        (1.0, 4.0, False, {PLAIN_POSITIVE: -3.0, SEEN_POSITIVE: 4.0}),
        (7.0, 4.0, False, {PLAIN_POSITIVE: -3.0, SEEN_POSITIVE: 4.0}),
        (4.0, 4.0, True, {PLAIN_NEGATIVE: -3.0, SEEN_POSITIVE: 4.0}),
        (0.0, 2.0, True, {PLAIN_NEGATIVE: -1.0, SEEN_NEGATIVE: 2.0}),
        (1.0, 0.0, True, {PLAIN_POSITIVE: 1.0}),
        (3.0, 0.0, True, {PLAIN_NEGATIVE: -2.0, PLAIN_POSITIVE: 3.0}),
        (3.0, 0.0, False, {PLAIN_POSITIVE: 1.0}),
    ],
)
def test_rows_are_merged_and_dropped(
    text_scale: float, reference_scale: float, texts_differ: bool, expected: dict[Variant, float]
) -> None:
    guidance = video_as_prompt_guidance(text_scale, reference_scale, texts_differ=texts_differ)
    assert weights_of(guidance) == pytest.approx(expected)


@given(st.floats(0, 20), st.floats(0, 20), st.booleans())
def test_weights_add_up_to_one(text_scale: float, reference_scale: float, texts_differ: bool) -> None:
    guidance = video_as_prompt_guidance(text_scale, reference_scale, texts_differ=texts_differ)
    assert sum(row.weight for row in guidance.rows) == pytest.approx(1.0, abs=1e-6)
    assert 1 <= len(guidance.rows) <= 3
    same = torch.tensor([1.5, -2.0])
    torch.testing.assert_close(combine(guidance.rows, [same] * len(guidance.rows)), same, atol=1e-4, rtol=1e-4)


def test_the_sum_is_the_formula() -> None:
    torch.manual_seed(0)
    predictions = {variant: torch.randn(3) for variant in (PLAIN_NEGATIVE, SEEN_NEGATIVE, SEEN_POSITIVE)}
    plain, seen, told = predictions.values()
    guidance = video_as_prompt_guidance(5.0, 3.0)
    total = combine(guidance.rows, [predictions[row.variant] for row in guidance.rows])
    torch.testing.assert_close(total, plain + 3.0 * (seen - plain) + 5.0 * (told - seen))


def test_a_negative_reference_takes_the_place_of_the_backbone() -> None:
    guidance = video_as_prompt_guidance(1.0, 4.0, texts_differ=False, null_reference="negative")
    assert weights_of(guidance) == {Variant("positive", "negative"): -3.0, SEEN_POSITIVE: 4.0}
    assert [len(group) for group in guidance.groups("batched")] == [1, 1]


def test_grouping_keeps_every_row() -> None:
    guidance = video_as_prompt_guidance(5.0, 3.0)
    assert [len(group) for group in guidance.groups("sequential")] == [1, 1, 1]
    assert [[row.variant for row in group] for group in guidance.groups("batched")] == [
        [PLAIN_NEGATIVE],
        [SEEN_NEGATIVE, SEEN_POSITIVE],
    ]
    assert guidance.to_table()[0] == {"text": "negative", "reference": "none", "weight": -2.0}


def test_bad_scales_are_refused() -> None:
    for name in ("guidance_scale", "reference_guidance_scale"):
        for scale in (-1.0, float("nan"), float("inf")):
            with pytest.raises(InputError, match="at least 0"):
                Settings().override(**{name: scale})


def test_the_dynamic_scale_is_that_of_cogvideox() -> None:
    # 1 + g * (1 - cos(pi * ((N - t) / N) ** 5)) / 2 at N = 50, by hand for the first and the last timestep.
    assert dynamic_guidance_scale(6.0, 0.0, 50) == pytest.approx(7.0)
    assert dynamic_guidance_scale(6.0, 50.0, 50) == pytest.approx(1.0)
    assert all(1.0 <= dynamic_guidance_scale(6.0, timestep, 50) <= 7.0 for timestep in range(1000))
