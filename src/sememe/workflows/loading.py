"""A model in memory, ready to generate, and what it was loaded from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sememe.checkpoints.fingerprint import ModelFingerprint, fingerprint_model
from sememe.checkpoints.zoo import find_folder, is_hub_id, resolve_model
from sememe.compute.host import read_free_memory
from sememe.compute.loading_settings import LoadingSettings
from sememe.compute.strategy import GIGABYTE, MemoryPlan, check_constraints
from sememe.errors import InputError
from sememe.system import System
from sememe.workflows.plan import find_expert, plan_memory, stores_last

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LoadedExpert:
    """An expert that lies apart from its backbone.

    Attributes:
        folder: What it was loaded from.
        sha256: Hash of the folder's files.
    """

    folder: Path
    sha256: str


@dataclass(frozen=True)
class LoadedModel:
    """A pipeline on its device.

    Attributes:
        name: As it was asked for.
        folder: What it was loaded from.
        fingerprint: Fingerprint of the folder's files.
        pipeline: On `device`.
        device: `cpu`, `cuda`, `mps`, ...
        dtype: Precision of the transformer's weights.
        own_dtype: The precision in which the model is meant to be computed, see `CheckpointSpec`.
        expert: Where it lies apart.
        attention: Backend of its attention; None for the one of the library.
        is_compiled: Whether its blocks are compiled.
        plan: By which it was placed on the device.
        adapters: Files of LoRA weights that were added, with their scales.
    """

    name: str
    folder: Path
    fingerprint: ModelFingerprint
    pipeline: Any
    device: str
    dtype: str
    own_dtype: str
    expert: LoadedExpert | None = None
    attention: str | None = None
    is_compiled: bool = False
    plan: MemoryPlan | None = None
    adapters: tuple[tuple[Path, float], ...] = ()


def check_model_request(system: System, name: str, loading: LoadingSettings) -> None:
    """Find mistakes without waiting for torch.

    Raises:
        ModelError: There is no such model here, and it cannot be one of the hub.
        InputError: A revision is given for a model that has none, or what is asked of the plan cannot be had together.
    """
    name = system.checkpoints.released.get(name, name)
    if not is_hub_id(name):
        resolve_model(name, system.name)
        if loading.revision is not None:
            raise InputError(f"a revision is one of a repository on the hub, but {name} is none; leave it out")
    if loading.vram is not None or loading.storage is not None:
        check_constraints(loading.vram or 1.0, loading.storage or "full", compiles=loading.compile)
    _ = loading.adapters  # which raises for files that are not there


def load_model(
    system: System, name: str, loading: LoadingSettings | None = None, generation: Mapping[str, Any] | None = None
) -> LoadedModel:
    """Load a model.

    Args:
        system: System of the model.
        name: Built-in name, folder, repository on the Hugging Face hub, or name of a released model.
        loading: How; None for the defaults.
        generation: The generation for which memory is planned, by the names of settings and numbers of inputs.

    Raises:
        ModelError: There is no such model, or it is not whole.
        InputError: The device is not there or has less memory than is planned for, the precision is unknown, attention
            cannot be had, nothing fits in what the plan is for, or memory ran out; or the system has no memory plans or
            experts.
        MissingExtraError: What is to store the weights is not installed.
    """
    from sememe.compute.placement import name_smaller_plan

    loading = loading or LoadingSettings()
    check_model_request(system, name, loading)
    name = system.checkpoints.released.get(name, name)
    place = _find_place(loading)
    loading = _ask_card(system, loading, place)
    free = read_free_memory() / GIGABYTE
    if loading.vram is not None and is_hub_id(name) and system.checkpoints.find_released(name):
        # By what is known of it, before tens of GB are fetched for nothing.
        plan_memory(system, name, loading, generation, host=free)
    folder, apart = find_folder(name, loading.revision, system.name), find_expert(system, loading)
    plan = None
    if loading.vram is not None:
        plan = plan_memory(system, folder, loading, generation, called=name, host=free)
    with name_smaller_plan(place, plan):
        pipeline = _load_pipeline(system, folder, apart, loading, plan, place)
        if plan is None:
            pipeline.to(place)
        else:
            pipeline.apply_plan(plan, place)
    _accelerate(pipeline, loading)
    return LoadedModel(
        name=name,
        folder=folder,
        fingerprint=fingerprint_model(folder),
        pipeline=pipeline,
        device=str(place),
        dtype=str(pipeline.transformer.dtype).removeprefix("torch."),
        own_dtype=system.checkpoints.find_dtype(folder, apart),
        expert=None if apart is None else LoadedExpert(apart, fingerprint_model(apart).sha256),
        attention=loading.attention,
        is_compiled=loading.compile,
        plan=plan,
        adapters=loading.adapters,
    )


def _ask_card(system: System, loading: LoadingSettings, place: "torch.device") -> LoadingSettings:
    """Return the settings with what is free on a CUDA card as `vram`, where none is given and plans can be made.

    Raises `InputError` if weights are to be stored in fewer bits where no plan is made.
    """
    from sememe.compute.devices import read_free_vram

    if loading.vram is None and place.type == "cuda" and system.workload is not None:
        return replace(loading, vram=read_free_vram(place))
    if loading.vram is None and loading.storage is not None:
        raise InputError("storage has an effect only with vram, the GB of the card to plan for; set both or neither")
    return loading


def _load_pipeline(
    system: System,
    folder: Path,
    expert: Path | None,
    loading: LoadingSettings,
    plan: MemoryPlan | None,
    place: "torch.device",
) -> Any:
    import torch
    from diffusers.utils.logging import disable_progress_bar

    disable_progress_bar()
    dtype = loading.dtype if plan is None else plan.strategy.dtype
    precision: Any = None if dtype is None else getattr(torch, dtype)
    if loading.vae_dtype != "float32":
        chosen = {} if precision is None else {"default": precision}
        precision = chosen | {"vae": getattr(torch, loading.vae_dtype)}
    options: dict[str, Any] = {} if expert is None else {"expert": expert}
    if plan is not None and not stores_last(loading):
        options["storage"] = plan.strategy.storage
        if plan.strategy.offload == "none":
            options["device_map"] = place  # the machine's own memory then holds one network at a time
    pipeline = system.import_pipeline().from_pretrained(folder, torch_dtype=precision, **options)
    pipeline.set_progress_bar_config(disable=True)
    if loading.adapters:
        names = [f"{path.stem.replace('.', '_')}_{index}" for index, (path, _) in enumerate(loading.adapters)]
        for name, (path, _) in zip(names, loading.adapters, strict=True):
            pipeline.load_lora_weights(path, adapter_name=name)
        pipeline.set_adapters(names, [scale for _, scale in loading.adapters])
    return pipeline


def _accelerate(pipeline: Any, loading: LoadingSettings) -> None:
    from sememe.compute.speed import compile_transformer, set_attention

    if loading.attention is not None:
        set_attention(pipeline, loading.attention)
    if loading.compile:
        compile_transformer(pipeline)


def _find_place(loading: LoadingSettings) -> "torch.device":
    """Return the device; check it, and libraries that are needed, before anything is loaded; see `load_model`."""
    from sememe.compute.devices import check_vram, choose_device
    from sememe.compute.speed import check_attention_name, check_compiler
    from sememe.compute.storage import Quantization, check_installed

    place = choose_device(loading.device)
    if loading.vram is not None:
        check_vram(place, loading.vram)
    if loading.storage is not None and loading.storage in get_args(Quantization):
        check_installed(loading.storage)
    if loading.attention is not None:
        check_attention_name(loading.attention)
    if loading.compile:
        check_compiler(place)
    return place
