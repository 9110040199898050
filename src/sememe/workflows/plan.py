"""Memory plans by the name of a model, before anything is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sememe.checkpoints.zoo import is_hub_id, resolve_model
from sememe.compute.loading_settings import LoadingSettings
from sememe.compute.strategy import Constraints, MemoryPlan, check_constraints
from sememe.errors import ModelError


def plan_memory(
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
        name: Released model (`wan-14b`, `cogvideox-5b`, or its repository on the hub), built-in one, or folder.
        loading: `vram`, and the precision, storage, compilation and expert that are asked for.
        generation: What is generated, by the names of settings and numbers of inputs.
        called: Name in messages; None for `name`.
        host: GB of memory that are free in the machine that computes; None where that is another one.

    Raises:
        ModelError: there is no such model or expert, it is not whole, or they do not go together.
        InputError: the model cannot make such a video, or nothing fits; the message names the least that would do.
    """
    assert loading.vram is not None
    storage = loading.storage or "full"
    check_constraints(loading.vram, storage, compiles=loading.compile)
    from sememe.video_as_prompt.blueprint import RELEASED, find_released, make_released, read_blueprint
    from sememe.video_as_prompt.memory_plan import make_planner
    from sememe.video_as_prompt.model_folders import find_expert
    from sememe.video_as_prompt.system import VIDEO_AS_PROMPT

    expert, released = loading.expert, find_released(name)
    if released is not None and (name == released or is_hub_id(name)):
        if expert is not None:
            raise ModelError(f"expected a stock model to put the expert {expert} on, but {name} has one; leave it out")
        blueprint = make_released(released)
    elif is_hub_id(name):
        raise ModelError(f"expected {', '.join(RELEASED)}, a built-in model or a folder to plan for, got {name}")
    else:
        try:
            folder = resolve_model(name, VIDEO_AS_PROMPT.name)
        except ModelError as error:
            raise ModelError(f"{error}; plans are also made for {' and '.join(RELEASED)}") from error
        blueprint = read_blueprint(folder, None if expert is None else find_expert(expert))
    dtypes: list[str] = [loading.dtype or blueprint.dtype]
    if loading.dtype is None and blueprint.dtype == "float32":
        dtypes.append("bfloat16")
    constraints = Constraints(
        vram=loading.vram,
        dtypes=tuple(dtypes),
        own_dtype=blueprint.dtype,
        storage=storage,
        compiles=loading.compile,
        host=host,
    )
    return make_planner(blueprint.pipeline, called or Path(name).name, **(generation or {})).choose(constraints)
