"""Memory plans by the name of a model, before anything is loaded."""

from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from sememe.checkpoints.zoo import is_hub_id, resolve_model
from sememe.compute.loading_settings import LoadingSettings
from sememe.compute.strategy import Constraints, MemoryPlan, check_constraints
from sememe.errors import InputError, ModelError
from sememe.system import System


def plan_memory(
    system: System,
    name: str | Path,
    loading: LoadingSettings,
    generation: Mapping[str, Any] | None = None,
    *,
    called: str | None = None,
    host: float | None = None,
) -> MemoryPlan:
    """Choose the fastest way to compute that fits; an exact one wherever there is one.

    A card of 24 GB has 24 GiB: the 7 % between that and 24e9 bytes are left to the driver and the allocator.

    Args:
        system: System of the model.
        name: Released model, by its name in the system's record or its repository on the hub, built-in one, or folder.
        loading: `vram`, and the precision, storage, compilation and expert that are asked for.
        generation: What is generated, by the names of settings and numbers of inputs.
        called: Name in messages; None for `name`.
        host: GB of memory that are free in the machine that computes; None where that is another one.

    Raises:
        ModelError: There is no such model or expert, it is not whole, or they do not go together.
        InputError: The system has no memory plans, the model cannot make such a video, or nothing fits; the message
            names the least that would do.
    """
    assert loading.vram is not None
    storage = loading.storage or "full"
    check_constraints(loading.vram, storage, compiles=loading.compile)
    if system.workload is None:
        raise InputError(f"there are no memory plans for {system.title}; leave vram out")
    source, expert = _find_source(system, name, loading.expert), find_expert(system, loading)
    make = system.checkpoints.blueprint
    pipeline = system.import_pipeline().sketch(source) if make is None else resolve_name(make)(source, expert)
    own_dtype = system.checkpoints.find_dtype(source, expert)
    dtypes: list[str] = [loading.dtype or own_dtype]
    if loading.dtype is None and own_dtype == "float32":
        dtypes.append("bfloat16")
    constraints = Constraints(
        vram=loading.vram,
        dtypes=tuple(dtypes),
        own_dtype=own_dtype,
        storage=storage,
        compiles=loading.compile,
        vae_dtype=loading.vae_dtype,
        host=host,
    )
    planner = pipeline.make_planner(
        called or Path(name).name, loading.vae_dtype, stores_last=stores_last(loading), **(generation or {})
    )
    plan: MemoryPlan = planner.choose(constraints)
    return plan


def stores_last(loading: LoadingSettings) -> bool:
    """Return whether weights can be stored in fewer bits only when all are loaded: LoRA goes before fp8, not on it."""
    return loading.storage == "fp8" and bool(loading.lora)


def find_expert(system: System, loading: LoadingSettings) -> Path | None:
    """Return the folder of the expert that is to be loaded apart; None where none is asked for.

    Raises:
        InputError: The system has no such experts.
        ModelError: There is no such expert.
    """
    if loading.expert is None:
        return None
    if system.checkpoints.find_expert is None:
        raise InputError(f"{system.title} has no experts that are loaded apart; leave expert out")
    found: Path = resolve_name(system.checkpoints.find_expert)(loading.expert)
    return found


def _find_source(system: System, name: str | Path, expert: str | None) -> str | Path:
    """Return the name of a released model, or a model's folder."""
    known, released = system.checkpoints.released, system.checkpoints.find_released(name)
    if released is not None and (name == released or is_hub_id(name)):
        if expert is not None:
            raise ModelError(f"expected a stock model to put the expert {expert} on, but {name} has one; leave it out")
        return released
    if is_hub_id(name):
        raise ModelError(f"expected {', '.join((*known, 'a built-in model'))} or a folder to plan for, got {name}")
    try:
        return resolve_model(name, system.name)
    except ModelError as error:
        raise ModelError(f"{error}; plans are also made for {' and '.join(known)}" if known else str(error)) from error
