"""A model in memory, ready to generate, and what it was loaded from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sememe.checkpoints.fingerprint import ModelFingerprint, fingerprint_model
from sememe.checkpoints.zoo import find_folder, is_hub_id, resolve_model
from sememe.compute.host import read_free_memory
from sememe.compute.loading_settings import LoadingSettings
from sememe.compute.strategy import GIGABYTE, MemoryPlan, check_constraints
from sememe.errors import InputError
from sememe.video_as_prompt.system import VIDEO_AS_PROMPT
from sememe.workflows.plan import plan_memory

if TYPE_CHECKING:
    import torch

    from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline


@dataclass(frozen=True)
class LoadedExpert:
    """An expert that lies apart from its backbone.

    Attributes:
        folder: what it was loaded from.
        sha256: Hash of the folder's files.
    """

    folder: Path
    sha256: str


@dataclass(frozen=True)
class LoadedModel:
    """A pipeline on its device.

    Attributes:
        name: as it was asked for.
        folder: what it was loaded from.
        fingerprint: Fingerprint of the folder's files.
        pipeline: on `device`.
        device: `cpu`, `cuda`, `mps`, ...
        dtype: precision of the transformer's weights.
        own_dtype: the precision in which the model is to be computed.
        expert: where it lies apart.
        attention: backend of its attention; None for the one of the library.
        is_compiled: whether its blocks are compiled.
        plan: by which it was placed on the device.
    """

    name: str
    folder: Path
    fingerprint: ModelFingerprint
    pipeline: "VideoAsPromptPipeline"
    device: str
    dtype: str
    own_dtype: str
    expert: LoadedExpert | None = None
    attention: str | None = None
    is_compiled: bool = False
    plan: MemoryPlan | None = None


def check_model_request(name: str, loading: LoadingSettings) -> None:
    """Find mistakes without waiting for torch.

    Raises:
        ModelError: there is no such model here, and it cannot be one of the hub.
        InputError: a revision is given for a model that has none.
    """
    if not is_hub_id(name):
        resolve_model(name, VIDEO_AS_PROMPT.name)
        if loading.revision is not None:
            raise InputError(f"a revision is one of a repository on the hub, but {name} is none; leave it out")


def load_model(
    name: str, loading: LoadingSettings | None = None, generation: Mapping[str, Any] | None = None
) -> LoadedModel:
    """Load a Video-As-Prompt model.

    Args:
        name: Built-in name, folder, or repository on the Hugging Face hub.
        loading: Device, precision and ways to compute.
        generation: With `vram`, the generation to plan for, by the names of settings and numbers of inputs.

    Raises:
        ModelError: there is no such model, or it is not whole.
        InputError: the device is not there or has less memory than is planned for, the precision is unknown, attention
            cannot be had, or nothing fits in what the plan is for.
        MissingExtraError: what is to store the weights is not installed.
    """
    loading = loading or LoadingSettings()
    check_model_request(name, loading)
    if loading.vram is not None:
        check_constraints(loading.vram, loading.storage or "full", compiles=loading.compile)
    import torch
    from diffusers.utils.logging import disable_progress_bar

    from sememe.compute.devices import choose_device
    from sememe.compute.speed import check_attention_name, check_compiler
    from sememe.video_as_prompt.blueprint import find_released, read_own_dtype
    from sememe.video_as_prompt.memory_plan import apply_plan
    from sememe.video_as_prompt.model_folders import find_expert
    from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline

    place = choose_device(loading.device)
    if loading.vram is not None:
        _check_machine(loading, loading.vram, place)
    if loading.attention is not None:
        check_attention_name(loading.attention)
    if loading.compile:
        check_compiler(place)
    free = read_free_memory() / GIGABYTE
    if loading.vram is not None and is_hub_id(name) and find_released(name):
        # By what is known of it, before tens of GB are fetched for nothing.
        plan_memory(name, loading, generation, host=free)
    folder = find_folder(name, loading.revision, VIDEO_AS_PROMPT.name)
    apart = None if loading.expert is None else find_expert(loading.expert)
    plan = None
    if loading.vram is not None:
        plan = plan_memory(folder, loading, generation, called=name, host=free)
    disable_progress_bar()
    chosen = loading.dtype if plan is None else plan.strategy.dtype
    precision = None if chosen is None else getattr(torch, chosen)
    pipeline = VideoAsPromptPipeline.from_pretrained(folder, torch_dtype=precision, expert=apart)
    pipeline.set_progress_bar_config(disable=True)
    if plan is None:
        pipeline.to(place)
    else:
        apply_plan(pipeline, plan, place)
    _accelerate(pipeline, loading)
    weights = str(pipeline.transformer.dtype).removeprefix("torch.")
    own = None if apart is None else LoadedExpert(apart, fingerprint_model(apart).sha256)
    return LoadedModel(
        name=name,
        folder=folder,
        fingerprint=fingerprint_model(folder),
        pipeline=pipeline,
        device=str(place),
        dtype=weights,
        own_dtype=read_own_dtype(folder, apart),
        expert=own,
        attention=loading.attention,
        is_compiled=loading.compile,
        plan=plan,
    )


def _accelerate(pipeline: "VideoAsPromptPipeline", loading: LoadingSettings) -> None:
    from sememe.compute.speed import compile_transformer, set_attention

    if loading.attention is not None:
        set_attention(pipeline, loading.attention)
    if loading.compile:
        compile_transformer(pipeline)


def _check_machine(loading: LoadingSettings, vram: float, place: "torch.device") -> None:
    """Check a plan's card and libraries before anything is loaded.

    Raises:
        InputError: the device has less memory than is planned for.
        MissingExtraError: what is to store the weights is not installed.
    """
    from sememe.compute.devices import check_vram
    from sememe.compute.storage import Quantization, check_installed

    check_vram(place, vram)
    if loading.storage is not None and loading.storage in get_args(Quantization):
        check_installed(loading.storage)
