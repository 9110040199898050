"""Modules that are on the accelerator only while they are needed."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from accelerate import cpu_offload_with_hook
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.hooks.group_offloading import GroupOffloadingType, _get_top_level_group_offload_hook
from torch import nn

from sememe.errors import InputError

OffloadedPart = Literal["encoders", "expert"]
"""Parts of a pipeline that can be offloaded where the rest stays on the device."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def sends_modules_back(method: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate a pipeline's method: under offload "model" all modules leave the device after it, even if it raises.

    Until then the pipeline's `known_device` is the device it computes on, which diffusers looks for in all modules.
    """

    @wraps(method)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        pipeline: Any = args[0]
        before, pipeline.known_device = pipeline.known_device, pipeline._execution_device
        try:
            return method(*args, **kwargs)
        finally:
            pipeline.known_device = before
            pipeline.maybe_free_model_hooks()

    return call


def offload_expert(transformer: ModelMixin) -> list[Callable[[], None]]:
    """Keep a one-way expert on the CPU except while references are encoded.

    It comes to the backbone's device when a reference is embedded and leaves when the next step begins. In between a
    step needs nothing but the reference's keys and values. The result is the same.

    Returns:
        Functions that remove the hooks.

    Raises:
        InputError: A two-way expert, which is needed at every step.
    """
    check_can_offload(transformer)
    gate, parts = _first_module(transformer), expert_modules(transformer)

    def fetch(*_: Any) -> None:
        move_modules(parts, next(gate.parameters()).device)

    def leave(*_: Any) -> None:
        move_modules(parts, "cpu")

    leave()
    # No hooks on the experts themselves, which would break the graph of a compiled block.
    return [parts[0].register_forward_pre_hook(fetch).remove, gate.register_forward_pre_hook(leave).remove]


def check_can_offload(transformer: ModelMixin) -> None:
    """Raise `InputError` for a two-way expert, which is needed at every step."""
    if transformer.config.attention_mode != "cached":
        raise InputError("a two-way expert is needed at every step, so that it cannot leave the device in between")


def offload_encoders(pipeline: DiffusionPipeline, device: torch.device | str) -> list[Callable[[], None]]:
    """Keep text and image encoder on the CPU except while they encode; return what removes the hooks.

    They come to `device` when they are called and leave when the transformer's next step begins. The result is the
    same.
    """
    encoders = [pipeline.components.get(name) for name in ("text_encoder", "image_encoder")]
    # Accelerate's own hook also says where the encoder's inputs have to be.
    hooks = [cpu_offload_with_hook(encoder, torch.device(device))[1] for encoder in encoders if encoder is not None]

    def leave(*_: Any) -> None:
        for hook in hooks:
            hook.offload()

    at_step = _first_module(pipeline.transformer).register_forward_pre_hook(leave)
    return [at_step.remove, *(hook.remove for hook in hooks)]


def is_offloaded_by_layer(transformer: ModelMixin) -> bool:
    """Whether weights come and go within a block: offload 'sequential', or 'group' by single layers."""
    groups = _get_top_level_group_offload_hook(transformer)
    if groups is not None and groups.config.offload_type is GroupOffloadingType.LEAF_LEVEL:
        return True
    # Offload 'model' has its hook on the whole transformer.
    return any(hasattr(module, "_hf_hook") for name, module in transformer.named_modules() if name)


def expert_modules(transformer: ModelMixin) -> tuple[nn.Module, ...]:
    """Return the modules that hold the expert's weights and nothing else, its embedder first."""
    blocks, places = transformer.key_map.blocks, transformer.config.expert_blocks
    names = ("expert_embedder", *(f"{blocks}.{place}.expert" for place in places))
    return tuple(transformer.get_submodule(name) for name in names)


def move_modules(modules: Sequence[nn.Module], device: torch.device | str) -> None:
    """Move modules; those that are there already stay as they are."""
    for module in modules:
        module.to(device)


def place_without(root: nn.Module, left_out: Sequence[nn.Module], device: torch.device | str) -> None:
    """Move a module except some modules within it, which are never on the device."""
    kept = {id(module) for module in left_out}
    if id(root) in kept:
        return
    if not any(id(module) in kept for module in root.modules()):
        root.to(device)
        return
    for tensor in (*root.parameters(recurse=False), *root.buffers(recurse=False)):
        tensor.data = tensor.data.to(device)
    for child in root.children():
        place_without(child, left_out, device)


def _first_module(transformer: ModelMixin) -> nn.Module:
    """Return the patch embedding: called once in every step, and never while a reference is encoded."""
    children = dict(transformer.named_children())
    return children["patch_embedding" if "patch_embedding" in children else "patch_embed"]
