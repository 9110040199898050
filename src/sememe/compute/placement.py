"""Fit a pipeline into memory: where its modules are, how its weights are stored, and whether it works in tiles.

Call `apply_storage` before `apply_offload`; `enable_tiling` at any time. LoRA weights may be loaded before or after,
except with storage "fp8", before which they have to be loaded."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan, DiffusionPipeline, ModelMixin
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN, _is_layerwise_casting_active
from torch import nn

from sememe.backbones.autoencoder import Autoencoder
from sememe.compute.devices import find_device
from sememe.compute.offload import (
    OffloadedPart,
    check_can_offload,
    expert_modules,
    is_offloaded_by_layer,
    offload_encoders,
    offload_expert,
    place_without,
)
from sememe.compute.speed import is_compiled
from sememe.compute.storage import ADAPTER_LAYER_PATTERN, Parts, Quantization, find_library, quantize_transformer
from sememe.compute.strategy import MemoryPlan, round_up_gb
from sememe.errors import InputError

_DEFAULT_TILE = 256


def enable_tiling(vae: Autoencoder, tile_size: int = _DEFAULT_TILE) -> None:
    """Encode and decode in square tiles that overlap by a quarter: less memory, with seams that are blended.

    Approximate: a tile does not see what lies outside it.

    Args:
        vae: `AutoencoderKLWan` or `AutoencoderKLCogVideoX`.
        tile_size: Side of a tile in pixels, a multiple of 4 latents: of 32, or of 64 where a latent is 16 pixels wide.

    Raises:
        InputError: An autoencoder that cannot, or a size that does not divide into latents.
    """
    if not isinstance(vae, (AutoencoderKLWan, AutoencoderKLCogVideoX)):
        raise InputError(f"{type(vae).__name__} cannot work in tiles; turn them off, or use slicing for batches")
    step = 4 * _spatial_ratio(vae)
    if tile_size < step or tile_size % step:
        raise InputError(f"tile_size must be a multiple of {step} pixels for this autoencoder, got {tile_size}")
    if isinstance(vae, AutoencoderKLWan):
        vae.enable_tiling(tile_size, tile_size, tile_size * 3 // 4, tile_size * 3 // 4)
    else:
        vae.enable_tiling(tile_size, tile_size, 0.25, 0.25)


def check_tiling(vae: Autoencoder) -> None:
    """Raise `InputError` where tiling is on but would give a video of another size."""
    if not isinstance(vae, AutoencoderKLCogVideoX) or not vae.use_tiling:
        return
    ratio = _spatial_ratio(vae)
    for side in ("height", "width"):
        latent, pixels = (getattr(vae, f"tile_{space}_min_{side}") for space in ("latent", "sample"))
        overlap = getattr(vae, f"tile_overlap_factor_{side}")
        # From tile to tile, and what is kept of each, in pixels: as the stock class rounds them.
        decoded = (int(latent * (1 - overlap)) * ratio, pixels - int(pixels * overlap))
        encoded = (int(pixels * (1 - overlap)), (latent - int(latent * overlap)) * ratio)
        if len({*decoded, *encoded}) != 1:
            raise InputError(
                f"tiles of {pixels} pixels in {side} that overlap by {overlap:g} do not fit together in "
                f"{type(vae).__name__}; choose sizes of which the overlap is a whole number of latents, "
                "as enable_tiling of sememe.compute.placement does"
            )


def _spatial_ratio(vae: Autoencoder) -> int:
    if isinstance(vae, AutoencoderKLWan):
        return vae.spatial_compression_ratio
    return 2 ** (len(vae.config.block_out_channels) - 1)


OffloadKind = Literal["none", "model", "sequential", "group"]
"""Where the modules are:

- none: all on the device;
- model: one component at a time on the device, the others on the CPU;
- sequential: one layer at a time; the least memory, and by far the slowest;
- group: one block of the transformer at a time, fetched while the one before computes where the device can do that.

All give the same result.
"""

GroupLevel = Literal["block", "leaf"]
HostMemory = Literal["lean", "pinned"]
Storage = Literal["full", "fp8", Quantization]
"""How the transformer's weights are stored: as they were loaded; as 8-bit floats that are cast for each layer
(`fp8`, layerwise casting); or quantised."""

_EXPERT_PATTERN = r"(^|\.)expert(_embedder)?(\.|$)"


def apply_offload(
    pipeline: DiffusionPipeline,
    kind: str,
    device: torch.device | str,
    *,
    group_level: str = "block",
    host_memory: str = "lean",
    parts: Collection[str] = (),
) -> None:
    """Put a pipeline to work on `device`, with as much of it there as `kind` and `parts` say; exact.

    Args:
        pipeline: A `VideoAsPromptPipeline`, its weights on the CPU.
        kind: One of `OffloadKind`.
        device: Device on which to compute. "cpu" offloads nothing, but does everything that offloading does.
        group_level: For "group": whole blocks, or single layers, which take less memory and more time.
        host_memory: For "group": "lean" pins weights while they are copied, "pinned" holds them all pinned, which is
            faster and takes about twice the model's size in the host's memory. On the CPU there is no difference.
        parts: Parts that are offloaded where the kind leaves them on the device: "encoders" while the transformer
            works, "expert" (one-way only) while it takes steps.

    Raises:
        InputError: An unknown kind or device, a combination that cannot be, or a change from group offload to another.
    """
    _check("offload", kind, OffloadKind)
    _check("group_level", group_level, GroupLevel)
    _check("host_memory", host_memory, HostMemory)
    for part in parts:
        _check("parts", part, OffloadedPart)
    target = find_device(device)
    if any(_is_group_offload_enabled(module) for module in _modules(pipeline).values()):
        raise InputError("this pipeline is under group offload, which cannot be changed; load it again")
    _check_combination(pipeline, kind, group_level, parts)
    _remove_hooks(pipeline)
    if kind == "none":
        _place(pipeline, target, parts)
    elif kind == "model":
        pipeline.enable_model_cpu_offload(device=target)
    elif kind == "sequential":
        _offload_layers(pipeline, target)
    else:
        _offload_groups(pipeline, target, group_level, host_memory)
    pipeline._hook_removers = []
    if "encoders" in parts:
        pipeline._hook_removers += offload_encoders(pipeline, target)
    if "expert" in parts:
        pipeline._hook_removers += offload_expert(pipeline.transformer)
    options = {"group_level": group_level, "host_memory": host_memory, "parts": tuple(parts)}
    pipeline._offload = {"kind": kind, "device": target, **options}


@contextmanager
def without_offload(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Take off the hooks of `apply_offload`, which keep weights out of reach, within the block.

    Those of offload 'group' stay on.
    """
    chosen: dict[str, Any] | None = pipeline._offload
    is_on = any(hasattr(module, "_hf_hook") for module in _modules(pipeline).values())
    if chosen is None or chosen["kind"] == "group" or not is_on:
        yield
        return
    _remove_hooks(pipeline)
    try:
        yield
    finally:
        apply_offload(pipeline, **chosen)


@contextmanager
def name_smaller_plan(device: torch.device | str, plan: MemoryPlan | None) -> Iterator[None]:
    """Turn running out of memory within the block into one line that names the next smaller plan.

    Args:
        device: Where it computes.
        plan: Plan by which it was placed there; None without one.

    Raises:
        InputError: The device, or the machine itself, ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # those of torch are RuntimeErrors
        is_on_host = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
        if not is_on_host and not isinstance(error, torch.OutOfMemoryError):
            raise
        where = "the machine itself" if is_on_host else str(device)
        advice = "ask for fewer or smaller frames, or for loading.storage"
        if plan is not None and plan.smaller is not None:
            size, way = round_up_gb(plan.smaller.estimate.peak), plan.smaller.strategy
            advice = f"the next smaller plan is vram {size:g} ({way}); or {advice}"
        used = "" if plan is None else f" with the plan for {plan.constraints.vram:.3g} GB ({plan.strategy})"
        raise InputError(f"{where} ran out of memory{used}; {advice}") from error


def apply_storage(pipeline: DiffusionPipeline, storage: str, parts: str = "both") -> None:
    """Store the weights of the transformer's blocks in fewer bits, which is approximate; "full" changes nothing.

    Args:
        pipeline: A `VideoAsPromptPipeline`.
        storage: One of `Storage`.
        parts: Whether the backbone, the experts or both are meant.

    Raises:
        InputError: An unknown storage or part, or a transformer that is not in full precision any more, is offloaded
            by layers or blocks, or is compiled (for fp8).
        MissingExtraError: The library for this quantisation is not installed.
    """
    store_weights(pipeline.transformer, storage, parts)


def store_weights(transformer: ModelMixin, storage: str, parts: str = "both") -> None:
    """Store the weights of a transformer's blocks in fewer bits; arguments and errors are those of `apply_storage`."""
    _check("storage", storage, Storage)
    _check("parts", parts, Parts)
    if storage == "full":
        return
    if parts != "both" and not hasattr(transformer, "key_map"):
        raise InputError(f"a {type(transformer).__name__} has no expert, so that parts {parts!r} has no meaning")
    if _is_layerwise_casting_active(transformer) or find_library(transformer) is not None:
        raise InputError("the transformer's weights are in fewer bits already; load the pipeline again to change that")
    if is_offloaded_by_layer(transformer) or _is_group_offload_enabled(transformer):
        raise InputError(
            f"the transformer is offloaded by layers or blocks, whose storage cannot be changed to {storage!r}; load "
            "the pipeline again and choose the storage first, then the offload"
        )
    if storage == "fp8" and is_compiled(transformer):
        raise InputError("fp8 storage casts weights within a block, but the blocks are compiled; use fp8wo or int8wo")
    if storage == "fp8":
        cast_layerwise(transformer, parts)
    else:
        quantize_transformer(transformer, storage, parts)


def cast_layerwise(transformer: ModelMixin, parts: str = "both") -> None:
    """Store layers as 8-bit floats (e4m3) and cast each to its own precision while it computes.

    Embedders, norms with what modulates them, the output layer, and adapters stay in full precision.
    """
    patterns: tuple[str, ...] = (*DEFAULT_SKIP_MODULES_PATTERN, ADAPTER_LAYER_PATTERN)
    if parts == "backbone":
        patterns += (_EXPERT_PATTERN,)
    elif parts == "expert":
        assert hasattr(transformer, "key_map"), "only experts are stored apart"
        # Whatever is not under an expert: layers of the blocks themselves.
        patterns += (rf"^{transformer.key_map.blocks}\.\d+\.(?!expert(\.|$))\w",)
    transformer.enable_layerwise_casting(torch.float8_e4m3fn, transformer.dtype, skip_modules_pattern=patterns)


def _check_combination(pipeline: DiffusionPipeline, kind: str, group_level: str, parts: Collection[str]) -> None:
    is_by_layer = kind == "sequential" or (kind == "group" and group_level == "leaf")
    if is_by_layer and is_compiled(pipeline.transformer):
        raise InputError(
            "compiled blocks cannot be offloaded layer by layer; use offload 'group' by block, 'model' or 'none', or "
            "leave compiling out"
        )
    if "encoders" in parts and kind != "none":
        raise InputError(f"parts 'encoders' has no effect with offload {kind!r}, which moves them anyway")
    if "expert" in parts and kind not in ("none", "model"):
        raise InputError(f"parts 'expert' has no effect with offload {kind!r}, which moves it anyway")
    if "expert" in parts:
        check_can_offload(pipeline.transformer)
    library = find_library(pipeline.transformer)
    if kind == "sequential" and library is not None:
        raise InputError(f"weights of {library} cannot be offloaded layer by layer; use offload 'model' or 'none'")
    if kind == "group" and library == "bitsandbytes":
        raise InputError("weights of bitsandbytes cannot be offloaded in groups; use offload 'model' or 'none'")
    if kind == "sequential" and _is_layerwise_casting_active(pipeline.transformer):
        raise InputError("fp8 storage and sequential offload exclude each other; use offload 'group'")


def _offload_layers(pipeline: DiffusionPipeline, device: torch.device) -> None:
    for module in _offloaded_modules(pipeline, device).values():
        # As diffusers does, which however gives every device a number; the CPU with one is another to torch.
        cpu_offload(module, device, offload_buffers=any(True for _ in module.parameters(recurse=False)))


def _offload_groups(pipeline: DiffusionPipeline, device: torch.device, level: str, host_memory: str) -> None:
    for name, module in _offloaded_modules(pipeline, device).items():
        # Methods other than `forward` lead into an autoencoder; only some of them say which blocks those call.
        knows_blocks = name != "vae" or getattr(module, "_group_offload_block_modules", None) is not None
        by_block = level == "block" and knows_blocks
        apply_group_offloading(
            module,
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="block_level" if by_block else "leaf_level",
            num_blocks_per_group=1 if by_block else None,
            use_stream=device.type in ("cuda", "xpu"),
            low_cpu_mem_usage=host_memory == "lean",
        )


def _place(pipeline: DiffusionPipeline, device: torch.device, parts: Collection[str]) -> None:
    for name, module in _modules(pipeline).items():
        if "encoders" in parts and name in ("text_encoder", "image_encoder"):
            continue
        left_out = expert_modules(pipeline.transformer) if name == "transformer" and "expert" in parts else ()
        place_without(module, left_out, device)


def _remove_hooks(pipeline: DiffusionPipeline) -> None:
    for remove in pipeline._hook_removers:
        remove()
    pipeline.remove_all_hooks()


def _offloaded_modules(pipeline: DiffusionPipeline, device: torch.device) -> dict[str, nn.Module]:
    """Return the modules that are offloaded, after those that are not were moved to the device."""
    modules = _modules(pipeline)
    for name in pipeline._exclude_from_cpu_offload:
        if name in modules:
            modules.pop(name).to(device)
    return modules


def _modules(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def _check(name: str, value: str, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise InputError(f"expected {name} to be one of {', '.join(get_args(allowed))}, got {value!r}")
