"""diffusers' feature caches with an expert on: which work and how far off they are, and which are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import SeaCacheConfig, TextKVCacheConfig

from compute.feature_cache_configs import faster, pyramid, taylor
from sememe.errors import ModelError
from video_as_prompt.pipeline_factories import make_clip, make_cogvideox_pipeline, make_picture, make_pipeline

NUM_STEPS = 6


def make(kind: str) -> Any:
    settings: dict[str, Any] = {"num_inference_steps": NUM_STEPS}
    return make_cogvideox_pipeline(**settings) if kind == "cogvideox" else make_pipeline(kind, **settings)


def generate(pipe: Any, **settings: Any) -> torch.Tensor:
    given = {"image": make_picture(), "references": [make_clip()], "output_type": "latent"}
    return pipe(**(given | {"generator": torch.Generator().manual_seed(0)} | settings)).frames


def first_block(_: Any) -> Any:
    return FirstBlockCacheConfig(threshold=0.5)


def mag(_: Any) -> Any:
    return MagCacheConfig(num_inference_steps=NUM_STEPS, mag_ratios=[1.0] * NUM_STEPS, max_skip_steps=1)


# The most that a cache may be off, as a part of the largest latent: twice what was measured. Of six steps these
# settings compute one (first_block), three (mag), four (taylor, faster) and three to five (pyramid).
@pytest.mark.parametrize(
    ("kind", "config", "bound"),
    [
        ("joint", first_block, 0.13),
        ("joint", mag, 0.045),
        ("cached", taylor, 0.012),
        ("cached", pyramid, 0.03),
        ("joint", faster, 0.03),
        ("cached", first_block, 0.13),
        ("cogvideox", first_block, 0.13),
        ("cogvideox", pyramid, 0.03),
    ],
)
def test_caches_save_attention_at_a_bounded_error(kind: str, config: Callable[[Any], Any], bound: float) -> None:
    pipe = make(kind)
    attentions: list[int] = []
    last = getattr(pipe.transformer, pipe.transformer.key_map.blocks)[-1].attn1
    last.to_q.register_forward_hook(lambda *_: attentions.append(1))
    exact = generate(pipe)
    assert len(attentions) == NUM_STEPS
    attentions.clear()
    pipe.transformer.enable_cache(config(pipe))
    error = (generate(pipe) - exact).abs().max() / exact.abs().max()
    assert len(attentions) < NUM_STEPS, "some steps use what an earlier one gave"
    assert 0.0 < error < bound
    # Nothing of one generation is left in the next, and switched off it is as if it never was.
    again = (generate(pipe) - exact).abs().max() / exact.abs().max()
    assert again == error
    pipe.transformer.disable_cache()
    assert torch.equal(generate(pipe), exact)


@pytest.mark.parametrize("config", [first_block, mag, taylor])
def test_caches_keep_the_variants_of_guidance_apart(config: Callable[[Any], Any]) -> None:
    pipe = make("joint")
    settings = {
        "reference_guidance_scale": 2.0,
        "guidance_scale": 3.0,
        "prompt": "a red ball",
        "negative_prompt": "blurry",
    }
    exact = generate(pipe, **settings)
    pipe.transformer.enable_cache(config(pipe))
    assert 0.0 < (generate(pipe, **settings) - exact).abs().max() < 0.5 * exact.abs().max()


@pytest.mark.parametrize("kind", ["joint", "cogvideox"])
def test_what_has_no_effect_or_a_wrong_one_is_refused(kind: str) -> None:
    pipe = make(kind)
    for config, message in (
        (TaylorSeerCacheConfig(), "finds nothing to keep .*cache_identifiers"),
        (TextKVCacheConfig(), "finds nothing to keep"),
        (SeaCacheConfig(), "SeaCache needs .* use FirstBlockCacheConfig"),
        (FasterCacheConfig(current_timestep_callback=lambda: 0), "is_guidance_distilled=True"),
    ):
        with pytest.raises(ModelError, match=message) as refused:
            pipe.transformer.enable_cache(config)
        assert "\n" not in str(refused.value)
        assert not pipe.transformer.is_cache_enabled


def test_a_second_cache_is_refused() -> None:
    pipe = make("joint")
    pipe.transformer.enable_cache(first_block(pipe))
    with pytest.raises(ModelError, match="FirstBlockCacheConfig is enabled already; call disable_cache"):
        pipe.transformer.enable_cache(mag(pipe))


def test_what_a_cache_cannot_follow_is_refused_before_anything_is_computed() -> None:
    pipe = make("joint")
    for config, settings, message in (
        (pyramid, {"reference_guidance_scale": 2.0}, "takes 2 of them per step"),
        (faster, {"reference_guidance_scale": 2.0}, "takes 2 of them per step"),
        (mag, {"num_inference_steps": 3}, "set up for 6 steps, but num_inference_steps is 3"),
        (taylor, {"references": [make_clip(), make_clip(1)]}, "2 references pass"),
        (first_block, {"approximate": True, "reference_refresh": 2}, "reference_refresh and a feature cache"),
    ):
        pipe.transformer.enable_cache(config(pipe))
        with pytest.raises(ModelError, match=message) as refused:
            generate(pipe, **settings)
        assert "\n" not in str(refused.value)
        pipe.transformer.disable_cache()
