"""Ways to compute faster: attention backends, compilation, and diffusers' feature caches.

Backends and compilation change results by rounding only, except the backends that compute in 8 bits (`sage...`). Blocks
are compiled beneath their hooks: what is hooked on a block (weights that are fetched for it, a cache that may skip it)
stays outside of the graph, which is whole all the same, and may be put on and taken off before and after.

Feature caches save work by using results of earlier steps again, so all of them are approximate:

| cache | one-way | two-way |
|---|---|---|
| FirstBlockCache, MagCache | works | needs an expert in both the first and the last block, or in neither |
| TaylorSeer | works, given the attentions to cache (`cache_identifiers`) | the same, with one reference |
| PyramidAttentionBroadcast | works, with one forward per step | the same, with one reference |
| FasterCache | works with `is_guidance_distilled=True` and one forward per step | the same, with one reference |
| SeaCache, TextKVCache | refused | refused |

One forward per step means guidance that is off, or variants that share a forward. Two caches keep one state for all
forwards, and would use the results of one variant of the conditioning for another. A reference is encoded without any
cache. With compiled blocks (`compile_transformer`) go those that skip whole blocks: FirstBlockCache and MagCache."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.hooks.layerwise_casting import _is_layerwise_casting_active
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    _check_attention_backend_requirements,
    dispatch_attention_fn,
)

from sememe.compute.devices import can_compile
from sememe.compute.offload import is_offloaded_by_layer
from sememe.diffusion.denoise import Predict
from sememe.diffusion.guidance import VariantT
from sememe.errors import InputError, ModelError, tell_reason

_MOST_GRAPHS = 64
"""Graphs per kind of block, over all models of a process: each attention mode, size of the result and strength of the
reference may need one. torch.compile refuses a ninth by default."""

_MARK = "_is_compiled_beneath_hooks"


def compile_blocks(model: ModelMixin, **options: Any) -> None:
    """Compile the forward of each repeated block of a transformer, in whole graphs.

    Args:
        model: A model of diffusers; its `_repeated_blocks` name the classes.
        options: Options of `torch.compile`.
    """
    options = {"fullgraph": True} | options
    if "recompile_limit" in signature(torch.compile).parameters:
        options = {"recompile_limit": _MOST_GRAPHS} | options
    else:  # older versions have one limit for the whole process
        limits: Any = torch._dynamo.config
        limits.cache_size_limit = max(limits.cache_size_limit, _MOST_GRAPHS)
    for block in list(_repeated_blocks(model)):
        # Blocks of one kind share their code, and with it the graphs.
        registry = getattr(block, "_diffusers_hook", None)
        first = registry._fn_refs[0] if registry is not None and registry._fn_refs else None
        if first is None:
            block.forward = torch.compile(block.forward, **options)
        elif first.original_forward is not None:
            first.original_forward = torch.compile(first.original_forward, **options)
        else:
            first.forward = torch.compile(first.forward, **options)
        setattr(block, _MARK, True)


def is_compiled(model: ModelMixin) -> bool:
    """Return whether a block of a transformer is compiled."""
    return any(
        block._compiled_call_impl is not None or getattr(block, _MARK, False) for block in _repeated_blocks(model)
    )


def _repeated_blocks(model: ModelMixin) -> Iterator[Any]:
    """The blocks that `compile_blocks` compiles."""
    return (module for module in model.modules() if type(module).__name__ in (model._repeated_blocks or ()))


# What these keep belongs to whole blocks; what all others keep belongs to one attention each.
_OF_BLOCKS = ("FirstBlockCacheConfig", "MagCacheConfig")
_FOR_ONE_FORWARD = ("PyramidAttentionBroadcastConfig", "FasterCacheConfig")
_ADVICE = {
    "TaylorSeerCacheConfig": "name the attentions, such as cache_identifiers=[r'{blocks}\\.\\d+\\.attn\\d']",
    "TextKVCacheConfig": "leave it out: where a model allows it, keys and values of texts are kept in any case",
}


def enable_checked(model: ModelMixin, config: Any, enable: Callable[[Any], None]) -> None:
    """Enable a feature cache, if it takes effect.

    Args:
        model: A transformer with experts.
        config: Configuration of the cache.
        enable: The method of diffusers that enables it.

    Raises:
        ModelError: It would have no effect, or another cache is enabled.
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


@contextmanager
def without_feature_cache(model: ModelMixin) -> Iterator[None]:
    """Take the feature cache of a transformer off within the block; what it keeps is lost."""
    config = getattr(model, "_cache_config", None)
    if config is not None:
        model.disable_cache()
    try:
        yield
    finally:
        if config is not None:
            model.enable_cache(config)


def check_compiled_cache(config: Any) -> None:
    """Raise `ModelError` for a cache (None is no cache) that works within blocks, which compiled ones cannot hold."""
    if config is not None and _name(config) not in _OF_BLOCKS:
        raise ModelError(
            f"{_name(config)} keeps results of layers within a block, which cannot be compiled; use "
            "FirstBlockCacheConfig or MagCacheConfig, or leave compiling out"
        )


def check_two_way(model: ModelMixin, num_references: int) -> None:
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


def check_generation(
    model: ModelMixin, num_forwards: int, num_inference_steps: int, *, is_limited: bool = False
) -> None:
    """Check the model's feature cache, if it has one, against a generation.

    Args:
        model: A transformer with experts.
        num_forwards: Forwards per step.
        num_inference_steps: Denoising steps.
        is_limited: Whether guidance acts at some of the steps only, so that forwards differ from step to step.

    Raises:
        ModelError: They do not go together.
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


def _find_hooks(model: ModelMixin) -> Iterator[tuple[str, str]]:
    """Yield the names of hooked modules below a model, and of their hooks."""
    for path, module in model.named_modules():
        if path:
            registry = getattr(module, "_diffusers_hook", None)
            yield from ((path, name) for name in (registry.hooks if registry is not None else ()))


def _name(config: Any) -> str:
    return type(config).__name__


def set_attention(pipeline: DiffusionPipeline, name: str) -> None:
    """Choose the backend of every attention of the transformer and its expert, and of no other model.

    Args:
        pipeline: A pipeline with a `transformer`, on the device and in the precision in which it is used.
        name: Name of the backend in diffusers, such as `native`, `flex`, `flash` or `sage`.

    Raises:
        InputError: There is no such backend, or it cannot be used here; the message names those that can.
    """
    reason = _find_obstacle(pipeline, _find_backend(name))
    if reason is not None:
        usable = ", ".join(list_usable_attention(pipeline))
        raise InputError(f"attention backend {name!r} cannot be used here ({reason}); these can: {usable}")
    # diffusers also makes it the one of all other models of this process, which did not ask for it.
    others, _ = _AttentionBackendRegistry.get_active_backend()
    try:
        pipeline.transformer.set_attention_backend(name)
    except ValueError as error:
        raise InputError(f"attention backend {name!r} cannot be used here ({tell_reason(error)})") from error
    finally:
        _AttentionBackendRegistry.set_active_backend(others)


def check_attention_name(name: str) -> None:
    """Check what can be known of an attention backend before a model is loaded; it may still fail there.

    Raises:
        InputError: Diffusers does not know it, what it needs is not installed, or it would be fetched from the hub.
    """
    reason = _find_lack(_find_backend(name))
    if reason is not None:
        raise InputError(f"attention backend {name!r} cannot be used here ({reason}); 'native' always can")


def _find_backend(name: str) -> AttentionBackendName:
    known = [backend.value for backend in AttentionBackendName]
    if name not in known:
        raise InputError(f"expected an attention backend, one of {', '.join(known)}, got {name!r}")
    return AttentionBackendName(name)


def _find_lack(backend: AttentionBackendName) -> str | None:
    """Return what a backend needs and does not have, on any device; None where nothing is missing."""
    if backend.value.endswith("_hub"):
        return "it would fetch code from the hub and run it; install its package and take the name without _hub"
    try:
        _check_attention_backend_requirements(backend)
    except Exception as error:  # each backend checks in its own way
        return tell_reason(error)
    return None


def list_usable_attention(pipeline: DiffusionPipeline, *, needs_mask: bool = False) -> tuple[str, ...]:
    """Return the attention backends that compute on the pipeline's device, in its precision; each is tried."""
    return tuple(
        backend.value
        for backend in AttentionBackendName
        if _find_obstacle(pipeline, backend, needs_mask=needs_mask) is None
    )


def check_mask_support(pipeline: DiffusionPipeline, strength: float) -> None:
    """Check that the chosen attention takes a mask, by which the weight of a reference is reduced.

    Args:
        pipeline: A pipeline with a `transformer`.
        strength: Weight of the reference in 0..1; 0 and 1 need no mask.

    Raises:
        InputError: It cannot; the message names the backends that can.
    """
    if not 0.0 < strength < 1.0:
        return
    default, _ = _AttentionBackendRegistry.get_active_backend()
    for name in list_attention(pipeline) or (default.value,):
        reason = _find_obstacle(pipeline, AttentionBackendName(name), needs_mask=True)
        if reason is not None:
            able = list_usable_attention(pipeline, needs_mask=True)
            raise InputError(
                f"reference_strength {strength:g} needs attention that takes a mask, which {name!r} does not "
                f"({reason}); use strength 1 or one of the backends {', '.join(able)}"
            )


def list_attention(pipeline: Any) -> tuple[str, ...]:
    """Return the backends that were chosen for the attentions of the transformer and its expert, by name."""
    processors = getattr(pipeline.transformer, "attn_processors", {}).values()
    chosen = {processor._attention_backend for processor in processors}
    return tuple(sorted(AttentionBackendName(backend).value for backend in chosen if backend is not None))


def compile_transformer(
    pipeline: DiffusionPipeline, *, backend: str | Callable[..., Any] = "inductor", **options: Any
) -> None:
    """Compile the transformer's blocks, with and without experts, each kind once, without graph breaks.

    The first step of a generation of a new size then takes longer, by minutes on large models; choose attention, LoRA
    weights and storage before. Offload 'group' by blocks, FirstBlockCache and MagCache act on whole blocks, outside of
    the graphs; they may be chosen before or after.

    Args:
        pipeline: A pipeline with a `transformer`.
        backend: Backend of `torch.compile`.
        options: Further arguments of `torch.compile`, such as `mode` or `dynamic`.

    Raises:
        InputError: There is no compiler, the blocks are compiled already, or weights are fetched or cast within a
            block's forward.
        ModelError: A feature cache keeps results of layers within a block.
    """
    transformer = pipeline.transformer
    if is_compiled(transformer):
        raise InputError("the transformer is compiled already")
    if _is_layerwise_casting_active(transformer):
        raise InputError("fp8 storage casts weights within a block, which cannot be compiled; use fp8wo or int8wo")
    if is_offloaded_by_layer(transformer):
        raise InputError(
            "blocks that are offloaded layer by layer cannot be compiled; leave compiling out, or have enough memory "
            "for offload 'group', 'model' or 'none'"
        )
    check_compiled_cache(transformer._cache_config)
    if backend == "inductor":
        check_compiler(pipeline._execution_device)
    compile_blocks(transformer, backend=backend, **options)


def check_compiler(device: torch.device) -> None:
    """Raise `InputError` where torch cannot compile for a device, because it finds no compiler."""
    if not can_compile(device):
        raise InputError("compiling needs a C++ compiler on a CPU, and none was found; install one (g++)")


def begin_generation(pipeline: DiffusionPipeline, predict: Predict[VariantT]) -> Predict[VariantT]:
    """Empty the transformer's feature cache, and return `predict` so that `current_timestep` follows it.

    PyramidAttentionBroadcast and FasterCache ask for the timestep: give them `lambda: pipeline.current_timestep`.
    """
    pipeline.transformer._reset_stateful_cache()

    def predict_at_known_timestep(
        latents: torch.Tensor, timestep: torch.Tensor, variants: tuple[VariantT, ...]
    ) -> torch.Tensor:
        pipeline.current_timestep = float(timestep)
        return predict(latents, timestep, variants)

    return predict_at_known_timestep


@torch.no_grad()
def _find_obstacle(
    pipeline: DiffusionPipeline, backend: AttentionBackendName, *, needs_mask: bool = False
) -> str | None:
    """Return why a backend cannot be used, or not with a mask; None where it can."""
    lack = _find_lack(backend)
    if lack is not None:
        return lack
    size = (1, 16, 2, pipeline.transformer.config.attention_head_dim)
    features = torch.zeros(size, device=pipeline._execution_device, dtype=pipeline.compute_dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if needs_mask:
                return _try_mask(features, backend)
            dispatch_attention_fn(features, features, features, backend=backend)
    except Exception as error:  # a kernel may fail in any way, and the reason is the answer
        return tell_reason(error)
    return None


def _try_mask(features: torch.Tensor, backend: AttentionBackendName) -> str | None:
    """Attend to as many zeros as ones, with half the weight on the ones: the mean is 1/3 with a mask, 1/2 without."""
    keys = torch.cat([features, features], dim=1)
    values = torch.cat([features, torch.ones_like(features)], dim=1)
    bias = values[:, :, :1, :1].permute(0, 2, 3, 1) * -math.log(2.0)
    mean = float(dispatch_attention_fn(features, keys, values, attn_mask=bias, backend=backend).float().mean())
    return None if abs(mean - 1 / 3) < 1 / 24 else "it leaves the mask out"
