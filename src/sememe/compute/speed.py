"""Ways to compute faster: attention backends, compilation, and what a generation owes to a feature cache.

Backends and compilation change results by rounding only, except the backends that compute in 8 bits (`sage...`).
Feature caches are approximate; `sememe.compute.feature_caches` says which work.
"""

import math
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks.layerwise_casting import _is_layerwise_casting_active
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    _check_attention_backend_requirements,
    dispatch_attention_fn,
)

from sememe.compute.compiled_blocks import compile_blocks, is_compiled
from sememe.compute.feature_caches import check_compiled_cache
from sememe.compute.offload import is_offloaded_by_layer
from sememe.diffusion.denoise import Predict
from sememe.diffusion.guidance import VariantT
from sememe.errors import InputError


def set_attention(pipeline: Any, name: str) -> None:
    """Chooses the backend of every attention of the transformer and its expert, and of no other model.

    Args:
        pipeline: a pipeline with a `transformer`, on the device and in the precision in which it is used.
        name: as diffusers has it, such as `native`, `flex`, `flash` or `sage`.

    Raises:
        InputError: where there is no such backend, or it cannot be used here; the message names those that can.
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
        raise InputError(f"attention backend {name!r} cannot be used here ({_first_line(error)})") from error
    finally:
        _AttentionBackendRegistry.set_active_backend(others)


def check_attention_name(name: str) -> None:
    """Checks what can be known of an attention backend before a model is loaded; it may still not compute there.

    Raises:
        InputError: diffusers does not know it, what it needs is not installed, or it would be fetched from the hub.
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
    """What a backend needs and does not have, on any device."""
    if backend.value.endswith("_hub"):
        return "it would fetch code from the hub and run it; install its package and take the name without _hub"
    try:
        _check_attention_backend_requirements(backend)
    except Exception as error:  # each backend checks in its own way
        return _first_line(error)
    return None


def list_usable_attention(pipeline: Any, *, needs_mask: bool = False) -> tuple[str, ...]:
    """The attention backends that compute on the pipeline's device, in its precision; each is tried."""
    return tuple(
        backend.value
        for backend in AttentionBackendName
        if _find_obstacle(pipeline, backend, needs_mask=needs_mask) is None
    )


def check_mask_support(pipeline: Any, strength: float) -> None:
    """Checks that the chosen attention can weigh a reference down, for which it has to take a mask.

    Args:
        pipeline: a pipeline with a `transformer`.
        strength: Weight of the reference; 0 and 1 need nothing.

    Raises:
        InputError: it cannot; the message names the backends that can.
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
    """The backends that were chosen for the attentions of the transformer and its expert, by name."""
    chosen = {processor._attention_backend for processor in pipeline.transformer.attn_processors.values()}
    return tuple(sorted(AttentionBackendName(backend).value for backend in chosen if backend is not None))


def compile_transformer(pipeline: Any, *, backend: str | Callable[..., Any] = "inductor", **options: Any) -> None:
    """Compiles the transformer's blocks, with and without experts, each kind once, without graph breaks.

    The first step of a generation of a new size then takes longer, by minutes on large models; choose attention, LoRA
    weights and storage before. Blocks that are fetched one at a time (offload 'group') or skipped (FirstBlockCache,
    MagCache) are so outside of the graphs; these may be chosen before or after.

    Args:
        pipeline: a pipeline with a `transformer`.
        backend: Backend of `torch.compile`.
        options: Further arguments of `torch.compile`, such as `mode` or `dynamic`.

    Raises:
        InputError: where there is no compiler, the blocks are compiled already, or their weights come and go, are
            cast, or give way to kept results within a block's forward, which no whole graph can hold.
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
    """Raises `InputError` where torch cannot compile for a device, because it finds no compiler."""
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise InputError("compiling needs a C++ compiler on a CPU, and none was found; install one (g++)")


def begin_generation(pipeline: Any, predict: Predict[VariantT]) -> Predict[VariantT]:
    """Makes a feature cache of the transformer forget what came before, and tells it how far the generation is.

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
def _find_obstacle(pipeline: Any, backend: AttentionBackendName, *, needs_mask: bool = False) -> str | None:
    """Why a backend cannot be used, or not with a mask; None where it can."""
    lack = _find_lack(backend)
    if lack is not None:
        return lack
    transformer = pipeline.transformer
    dtype = transformer.dtype
    if dtype == torch.float32 and pipeline.defaults.execution.autocast == "bfloat16":
        dtype = torch.bfloat16
    size = (1, 16, 2, transformer.config.attention_head_dim)
    features = torch.zeros(size, device=pipeline._execution_device, dtype=dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if needs_mask:
                return _try_mask(features, backend)
            dispatch_attention_fn(features, features, features, backend=backend)
    except Exception as error:  # a kernel may fail in any way; which one does is what is asked
        return _first_line(error)
    return None


def _try_mask(features: torch.Tensor, backend: AttentionBackendName) -> str | None:
    """Attends to as many zeros as ones, which weigh half as much: their mean is a third, with equal weights a half."""
    keys = torch.cat([features, features], dim=1)
    values = torch.cat([features, torch.ones_like(features)], dim=1)
    bias = values[:, :, :1, :1].permute(0, 2, 3, 1) * -math.log(2.0)
    mean = float(dispatch_attention_fn(features, keys, values, attn_mask=bias, backend=backend).float().mean())
    return None if abs(mean - 1 / 3) < 1 / 24 else "it leaves the mask out"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__
