"""Which of diffusers' feature caches work with an expert on, and what is refused.

They save work by using results of earlier steps again, so all of them are approximate.

| cache | one-way | two-way |
|---|---|---|
| FirstBlockCache, MagCache | works | needs an expert in both the first and the last block, or in neither |
| TaylorSeer | works, given the attentions to cache (`cache_identifiers`) | the same, with one reference |
| PyramidAttentionBroadcast | works, with one forward per step | the same, with one reference |
| FasterCache | works with `is_guidance_distilled=True` and one forward per step | the same, with one reference |
| SeaCache, TextKVCache | refused | refused |

One forward per step means guidance that is off, or variants that share a forward. Two caches keep one state for all
forwards, and would take what one variant of the conditions gave for another. A reference is encoded without any cache.
With compiled blocks (`compile_transformer`) go those that skip whole blocks: FirstBlockCache and MagCache.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from sememe.compute.compiled_blocks import is_compiled
from sememe.errors import ModelError

# What these keep belongs to whole blocks; what all others keep belongs to one attention each.
_OF_BLOCKS = ("FirstBlockCacheConfig", "MagCacheConfig")
_FOR_ONE_FORWARD = ("PyramidAttentionBroadcastConfig", "FasterCacheConfig")
_ADVICE = {
    "TaylorSeerCacheConfig": "name the attentions, such as cache_identifiers=[r'{blocks}\\.\\d+\\.attn\\d']",
    "TextKVCacheConfig": "leave it out: where a model allows it, keys and values of texts are kept in any case",
}


def enable_checked(model: Any, config: Any, enable: Callable[[Any], None]) -> None:
    """Enables a feature cache that can take effect.

    Args:
        model: a transformer with experts.
        config: Configuration of the cache.
        enable: the stock method.

    Raises:
        ModelError: where it cannot.
    """
    name = _name(config)
    if model.is_cache_enabled:
        raise ModelError(f"{_name(model._cache_config)} is enabled already; call disable_cache before {name}")
    if name == "SeaCacheConfig":
        raise ModelError(
            "SeaCache needs the noise level of every forward and supports no model that takes a picture; "
            "use FirstBlockCacheConfig"
        )
    if name == "FasterCacheConfig" and not config.is_guidance_distilled:
        raise ModelError(
            "FasterCache guesses half of a batch that guidance here does not form; say is_guidance_distilled=True, "
            "which leaves its cache of attentions, or use FirstBlockCacheConfig"
        )
    if is_compiled(model):
        check_compiled_cache(config)
    before = set(_find_hooks(model))
    enable(config)
    if set(_find_hooks(model)) == before:
        model.disable_cache()
        advice = _ADVICE.get(name, "use FirstBlockCacheConfig").format(blocks=model.key_map.blocks)
        raise ModelError(f"{name} finds nothing to keep in a {type(model).__name__}; {advice}")


def check_compiled_cache(config: Any) -> None:
    """Raises `ModelError` for a cache (None is no cache) that works within blocks, which compiled ones cannot hold."""
    if config is not None and _name(config) not in _OF_BLOCKS:
        raise ModelError(
            f"{_name(config)} keeps results of layers within a block, which cannot be compiled; use "
            "FirstBlockCacheConfig or MagCacheConfig, or leave compiling out"
        )


def check_two_way(model: Any, num_references: int) -> None:
    """Check a two-way model's feature cache against the number of references that pass through it.

    Raises:
        ModelError: The cache would mix up what it keeps.
    """
    name, experts = _name(model._cache_config), model.config.expert_blocks
    if name not in _OF_BLOCKS:
        if num_references > 1:
            raise ModelError(
                f"{name} keeps one result per attention, but {num_references} references pass through it "
                "one after the other; use FirstBlockCacheConfig, or one reference"
            )
        return
    if (experts[0] == 0) != (experts[-1] == model.config.num_layers - 1):
        raise ModelError(
            "a feature cache on a two-way reference needs an expert in both the first and the last block, or in "
            f"neither; this model has them in {experts}; disable the cache"
        )


def check_generation(model: Any, num_forwards: int, num_inference_steps: int, *, is_limited: bool = False) -> None:
    """Checks the model's feature cache, if it has one, against a generation.

    Args:
        model: a transformer with experts.
        num_forwards: per step.
        num_inference_steps: Denoising steps.
        is_limited: whether guidance acts at some of the steps only, so that forwards differ from step to step.

    Raises:
        ModelError: where they do not go together.
    """
    config = model._cache_config
    if config is None:
        return
    name = _name(config)
    if is_limited:
        raise ModelError(f"{name} expects the same forwards at every step; set guidance_interval to (0, 1)")
    if name in _FOR_ONE_FORWARD and num_forwards > 1:
        raise ModelError(
            f"{name} keeps one state for all forwards, but guidance takes {num_forwards} of them per step; turn "
            "guidance off, let variants share a forward (batching 'batched'), or use FirstBlockCacheConfig"
        )
    if name == "MagCacheConfig" and config.num_inference_steps != num_inference_steps:
        raise ModelError(
            f"MagCache was set up for {config.num_inference_steps} steps, but num_inference_steps is "
            f"{num_inference_steps}; make them equal"
        )


def _find_hooks(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of the modules below a model that have hooks, and of these."""
    for path, module in model.named_modules():
        if path:
            registry = getattr(module, "_diffusers_hook", None)
            yield from ((path, name) for name in (registry.hooks if registry is not None else ()))


def _name(config: Any) -> str:
    return type(config).__name__
