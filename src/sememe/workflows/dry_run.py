"""A training run up to its first step: everything is read and built, and nothing is trained or kept."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sememe.compute.devices import choose_device
from sememe.compute.host import read_free_memory
from sememe.events import Progress, ProgressHandler, ignore_progress
from sememe.training.checkpoint import (
    Resume,
    count_steps,
    find_own,
    list_checkpoints,
    load_checkpoint,
    load_initial,
)
from sememe.training.config import PhaseConfig, TrainingConfig
from sememe.training.frozen_weights import list_rounded
from sememe.training.optimizer import split_parameters
from sememe.training.phases import PlannedPhase, check_checkpoint, plan_phases
from sememe.training.process import list_compiled, resolve_precision, torch_settings
from sememe.training.recipes import TrainingRecipe
from sememe.training.run_record import check_inputs
from sememe.training.sharding import count_kept
from sememe.training.stage import Stage, step_generator
from sememe.training.step_cost import StepCost, count_costs, measure_rate, time_steps
from sememe.workflows.beginnings import START_NAME, PreparedStage, find_initial, prepare_stage
from sememe.workflows.systems import qualify_model
from sememe.workflows.train import RUNS_FOLDER, check_resumable, check_usable

_FLOAT32, _BFLOAT16 = 4, 2  # bytes
_MOST_SECONDS = 5.0
"""Largest sum of the estimated seconds of a step of each phase with which steps are timed. Steps take several times
as long as is estimated, and three of each phase are taken."""


@dataclass(frozen=True, kw_only=True)
class RehearsedPhase:
    """A phase of a run.

    Attributes:
        name: Its name.
        num_steps: Its steps.
        num_trained: Parameters that are trained in it.
        memory: Bytes of all weights, and of gradients, moments and averages of what is trained, as far as one process
            keeps them (see `TrainingConfig.shard`); activations, and the weights of the blocks that compute at the
            time, come on top of it.
        cost: Memory and operations of a share of its first step, on each of `Rehearsal.context` processes; None where
            only a training can show them.
        seconds: Seconds of a step, all of its shares after one another; None where they are not known.
        is_measured: Whether `seconds` were measured, of steps on this device without compiled blocks. Else they are the
            operations divided by those that products of matrices reach here in a second, and a training takes longer.
    """

    name: str
    num_steps: int
    num_trained: int
    memory: int
    cost: StepCost | None = None
    seconds: float | None = None
    is_measured: bool = False


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a run would do.

    Attributes:
        recipe: Name of the recipe.
        folder: Folder of the run.
        step: Steps that are done already.
        inputs: What identifies each thing that the run is made from.
        modules: Number of parameters of each module that the stage trains, or trains a part of.
        phases: The phases in order.
        batch: Type and shape of each tensor in the batch of a share.
        num_shares: Shares of a step.
        shard: Processes that hold one copy of the weights together.
        context: Processes that compute a share together.
        device: Where it trains.
    """

    recipe: str
    folder: Path
    step: int
    inputs: Mapping[str, str]
    modules: Mapping[str, int]
    phases: Sequence[RehearsedPhase]
    batch: Mapping[str, str]
    num_shares: int
    shard: int
    context: int
    device: str


def rehearse(
    recipe: TrainingRecipe,
    output_dir: Path | str | None = None,
    *,
    init_from: str | None = None,
    resume: Resume = "auto",
    allow_changes: Collection[str] = (),
    on_progress: ProgressHandler = ignore_progress,
) -> Rehearsal:
    """Read and build everything that a run needs, and make its first batch; arguments are those of `train_recipe`.

    What would keep the run from beginning is raised here as it is there. Nothing is written. Where a few steps fit into
    the memory that is free, and into a minute, they are taken and timed.

    Raises:
        RecipeError: Settings do not fit together, or the folder holds a run of others.
        ModelError: A model that is needed is not there, or does not fit.
        InputError: Clips or latents cannot be read.
    """
    folder = RUNS_FOLDER / recipe.name if output_dir is None else Path(output_dir)
    check_usable(recipe)
    check_resumable(recipe, folder, init_from, allow_changes, resume)
    initial = None if init_from is None else find_initial(qualify_model(init_from, recipe))
    checkpoints = list_checkpoints(folder / "checkpoints")
    with TemporaryDirectory() as temporary:
        place = folder if checkpoints and (folder / START_NAME).is_dir() else Path(temporary)
        prepare = partial(prepare_stage, recipe, place, initial, on_progress)
        prepared = prepare()
        if checkpoints:
            check_inputs(folder, prepared.inputs, allow_changes)
        stage, config = prepared.stage, recipe.training
        list_compiled(stage.modules(), config)
        if config.validate_every:
            stage.hold_out()
        shard = int(os.environ.get("WORLD_SIZE", "1")) if config.shard == -1 else config.shard
        config = resolve_precision(config, device := choose_device(config.device))
        kept = count_kept_numbers(stage, shard)
        weights = _count_weights(stage, config, kept)
        planned, latest = plan_phases(stage, config), find_own(folder, resume)
        _check_beginning(stage, config, planned, latest, None if initial is None else initial.checkpoint)
        phases = [_describe_phase(stage, config, phase.settings, kept, weights) for phase in planned]
        on_progress(Progress("making a batch"))
        batch = _make_batch(stage, config, phases[0].name, device)
        sizes = {name: sum(map(Tensor.numel, module.parameters())) for name, module in stage.modules().items()}
        on_progress(Progress("counting activations and operations, and timing steps"))
        phases = _add_costs(prepare, stage, replace(config, shard=shard), phases)
    return Rehearsal(
        recipe=recipe.name,
        folder=folder,
        step=0 if latest is None else count_steps(latest),
        inputs=prepared.inputs,
        modules=sizes,
        phases=phases,
        batch=_describe_batch(batch),
        num_shares=config.num_shares,
        shard=shard,
        context=config.context,
        device=str(device),
    )


def _check_beginning(
    stage: Stage, config: TrainingConfig, planned: Sequence[PlannedPhase], latest: Path | None, initial: Path | None
) -> None:
    """Read the checkpoint that the run would begin with, as the run does."""
    if latest is not None:
        check_checkpoint(load_checkpoint(latest, is_verified=True), latest, stage, config, planned)
    elif initial is not None:
        load_initial(initial)


@torch.no_grad()
def _make_batch(stage: Stage, config: TrainingConfig, phase: str, device: torch.device) -> Any:
    """Return the first batch of a phase."""
    stage.enter(phase)
    return stage.batch(0, step_generator(config.seed, 0, 0, "batch"), device)


def _add_costs(
    prepare: Callable[[], PreparedStage], stage: Stage, config: TrainingConfig, phases: Sequence[RehearsedPhase]
) -> list[RehearsedPhase]:
    """Return the phases with the costs of their steps; all times are measured, or estimated from operations."""
    found, device = count_costs(stage, config), choose_device(config.device)
    costs = [found[phase.name] for phase in phases if phase.name in found]
    if len(costs) < len(phases):
        return [replace(phase, cost=found.get(phase.name)) for phase in phases]
    with torch_settings(config, device):
        rate = measure_rate(device, torch.bfloat16 if config.precision == "bf16" else torch.float32)
        seconds = [config.num_shares * cost.operations / rate for cost in costs]
        needed = max(phase.memory + cost.activations for phase, cost in zip(phases, costs, strict=True))
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else read_free_memory()
        is_alone = max(config.shard, config.context, int(os.environ.get("WORLD_SIZE", "1"))) == 1
        is_measured = is_alone and needed < free and sum(seconds) < _MOST_SECONDS
        if is_measured:
            # A stage keeps some results, and those that counting left in this one have no values.
            with TemporaryDirectory() as folder:
                seconds = list(time_steps(prepare().stage, config, Path(folder)).values())
    return [
        replace(phase, cost=cost, seconds=each, is_measured=is_measured)
        for phase, cost, each in zip(phases, costs, seconds, strict=True)
    ]


def _count_weights(stage: Stage, config: TrainingConfig, kept: Mapping[str, int]) -> int:
    """Count the bytes of all weights and buffers that a process keeps."""
    rounded = list_rounded(stage, config)
    # Where weights are spread, modules have copies of what they would share.
    tensors = nn.ModuleDict(stage.modules()).state_dict(keep_vars=True)
    names = tensors if config.shard != 1 else {id(each): key for key, each in reversed(tensors.items())}.values()
    sizes = {key: _BFLOAT16 if key in rounded else tensors[key].element_size() for key in names}
    return sum(kept.get(key, tensors[key].numel()) * size for key, size in sizes.items())


def _describe_phase(
    stage: Stage, config: TrainingConfig, phase: PhaseConfig, kept: Mapping[str, int], weights: int
) -> RehearsedPhase:
    """Describe a phase of a run whose processes keep so many numbers of each parameter, and bytes of weights."""
    stage.enter(phase.name)
    modules = stage.modules()
    split = split_parameters(modules, config)
    trained = (*split.decayed, *split.plain, *split.hidden)
    # Gradients, AdamW's two moments or Muon's one, and the average.
    further = sum(kept[key] for key in trained) * (3 + bool(config.ema_decay)) - sum(kept[key] for key in split.hidden)
    sizes = {key: each.numel() for key, each in nn.ModuleDict(modules).named_parameters()}
    num_trained = sum(sizes[key] for key in trained)
    memory = weights + _FLOAT32 * further
    return RehearsedPhase(name=phase.name, num_steps=phase.num_steps, num_trained=num_trained, memory=memory)


def count_kept_numbers(stage: Stage, shard: int) -> dict[str, int]:
    """Count the numbers that one process keeps of each parameter of a stage, by "module.parameter".

    Args:
        stage: Stage.
        shard: Number of processes that hold one copy of the weights together.
    """
    spread = stage.always_run()
    return {
        f"{name}.{key}": count
        for name, module in stage.modules().items()
        for key, count in count_kept(module, shard if name in spread else 1).items()
    }


def _describe_batch(value: Any, name: str = "batch") -> dict[str, str]:
    """Return type and shape of every tensor in a batch, by the names of the fields that lead to it."""
    if isinstance(value, Tensor):
        return {name: f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"}
    parts: dict[str, Any] = {}
    if dataclasses.is_dataclass(value):
        parts = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    elif isinstance(value, Mapping):
        parts = dict(value)
    elif isinstance(value, list | tuple):
        parts = {str(place): each for place, each in enumerate(value)}
    return {key: text for part, each in parts.items() for key, text in _describe_batch(each, f"{name}.{part}").items()}
