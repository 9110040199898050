"""Modules that are on the accelerator only while they are needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from accelerate import cpu_offload_with_hook
from diffusers.hooks.group_offloading import GroupOffloadingType, _get_top_level_group_offload_hook
from torch import nn

from sememe.errors import InputError

RestingPart = Literal["encoders", "expert"]
"""What can be on the device only while it is needed."""

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


@dataclass(frozen=True)
class Resting:
    """Modules that come when they are called and leave when the transformer takes a step; `end` stops that."""

    undo: tuple[Callable[[], None], ...]

    def end(self) -> None:
        """Modules then stay wherever they are."""
        for step in self.undo:
            step()


def rest_expert(transformer: nn.Module, rest_device: torch.device | str = "cpu") -> Resting:
    """Keeps a one-way expert on `rest_device` but for the passes that encode references.

    It comes to the backbone's device when a reference is embedded and leaves when the next step begins. In between a
    step needs nothing but the reference's keys and values. The result is the same.

    Args:
        transformer: A transformer with experts.
        rest_device: Where the expert waits.

    Raises:
        InputError: A two-way expert, which is needed at every step.
    """
    check_can_rest(transformer)
    model: Any = transformer
    gate, parts = _first_module(transformer), expert_modules(transformer)

    def fetch(*_: Any) -> None:
        move_modules(parts, next(gate.parameters()).device)

    def leave(*_: Any) -> None:
        move_modules(parts, rest_device)

    leave()
    # Not on the experts themselves: a hook there would break the graph of a compiled block.
    hooks = (model.expert_embedder.register_forward_pre_hook(fetch), gate.register_forward_pre_hook(leave))
    return Resting(tuple(hook.remove for hook in hooks))


def check_can_rest(transformer: nn.Module) -> None:
    """Raises `InputError` for a two-way expert, which is needed at every step."""
    model: Any = transformer
    if model.config.attention_mode != "cached":
        raise InputError("a two-way expert is needed at every step, so that it cannot leave the device in between")


def rest_encoders(pipeline: Any, device: torch.device | str) -> Resting:
    """Keeps text and image encoder on the CPU but for the time in which they encode; the result is the same.

    They come to `device` when they are called and leave when the transformer's next step begins.
    """
    encoders = [getattr(pipeline, name) for name in ("text_encoder", "image_encoder")]
    # Accelerate's own hook also says where the encoder's inputs have to be.
    hooks = [cpu_offload_with_hook(encoder, torch.device(device))[1] for encoder in encoders if encoder is not None]

    def leave(*_: Any) -> None:
        for hook in hooks:
            hook.offload()

    at_step = _first_module(pipeline.transformer).register_forward_pre_hook(leave)
    return Resting((at_step.remove, *(hook.remove for hook in hooks)))


def is_offloaded_by_layer(transformer: nn.Module) -> bool:
    """Whether weights come and go within a block: offload 'sequential', or 'group' by single layers."""
    groups = _get_top_level_group_offload_hook(transformer)
    if groups is not None and groups.config.offload_type is GroupOffloadingType.LEAF_LEVEL:
        return True
    # Offload 'model' has its hook on the whole transformer.
    return any(hasattr(module, "_hf_hook") for module in transformer.modules() if module is not transformer)


def expert_modules(transformer: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that hold the expert's weights and nothing else."""
    model: Any = transformer
    blocks = getattr(model, model.key_map.blocks)
    return (model.expert_embedder, *(blocks[index].expert for index in model.config.expert_blocks))


def move_modules(modules: Sequence[nn.Module], device: torch.device | str) -> None:
    """Moves modules; what is there already stays untouched."""
    for module in modules:
        module.to(device)


def place_without(root: nn.Module, left_out: Sequence[nn.Module], device: torch.device | str) -> None:
    """Moves a module but for some within it, which never touch the device."""
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


def _first_module(transformer: nn.Module) -> nn.Module:
    """The backbone's patch embedding: called once in every step, and never while a reference is encoded."""
    model: Any = transformer
    return model.patch_embedding if hasattr(model, "patch_embedding") else model.patch_embed
