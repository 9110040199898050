"""Settings of the feature caches that work within blocks, for tiny pipelines."""

from typing import Any

import torch
from diffusers import FasterCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig

ATTENTIONS = r"(transformer_)?blocks\.\d+\.attn\d"


def taylor(_: Any) -> Any:
    return TaylorSeerCacheConfig(
        cache_interval=2,
        disable_cache_before_step=2,
        cache_identifiers=[ATTENTIONS],
        taylor_factors_dtype=torch.float32,
    )


def pyramid(pipe: Any) -> Any:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 900),
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def faster(pipe: Any) -> Any:
    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 700),
        attention_weight_callback=lambda _: 0.3,
        is_guidance_distilled=True,
        current_timestep_callback=lambda: pipe.current_timestep,
    )
