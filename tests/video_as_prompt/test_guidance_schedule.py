"""Guidance that acts at some of the steps only."""

from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig

from sememe.errors import InputError, ModelError
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.settings import Settings
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline

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


def test_text_that_is_left_out_cannot_be_told_outside() -> None:
    with pytest.raises(InputError, match="guidance_scale 0 leaves the prompt out"):
        generate(make_pipeline(), guidance_interval=(0.5, 1.0), guidance_scale=0.0)


def test_a_feature_cache_wants_equal_steps() -> None:
    pipe = make_pipeline(**GUIDED)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ModelError, match="same forwards at every step"):
        generate(pipe, guidance_interval=(0.5, 1.0))
