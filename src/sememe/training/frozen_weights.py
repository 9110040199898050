"""Frozen weights in half the memory: bfloat16, where nothing but autocast reads them."""

from collections.abc import Collection, Mapping

import torch
from torch import nn

from sememe.training.config import TrainingConfig
from sememe.training.optimizer import trained_parameters
from sememe.training.stage import Stage

_ROUNDED_BY_AUTOCAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def list_rounded(stage: Stage, config: TrainingConfig) -> dict[str, nn.Parameter]:
    """List the parameters that a run in bfloat16 keeps in bfloat16, by "module.parameter".

    They are weights and biases of linear layers and convolutions that no phase trains and that the stage only computes
    with (`Stage.only_computed`). Autocast rounds these to bfloat16 at every use, so storing them rounded does not
    change results. Leaves the stage in its last phase.

    Args:
        stage: Stage.
        config: Settings of the run, whose precision is not "auto".
    """
    if config.precision != "bf16":
        return {}
    trained: set[str] = set()
    for phase in config.list_phases():
        stage.enter(phase.name)
        trained |= trained_parameters(stage.modules()).keys()
    return find_rounded(nn.ModuleDict(stage.modules()), set(stage.only_computed()) - trained)


def find_rounded(module: nn.Module, names: Collection[str]) -> dict[str, nn.Parameter]:
    """Find those of the named parameters of a module that autocast rounds whenever they are used."""
    known = {
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        if isinstance(part, _ROUNDED_BY_AUTOCAST)
        for name, _ in part.named_parameters(recurse=False)
    }
    return {name: each for name, each in module.named_parameters() if name in known and name in names}


def round_weights(parameters: Mapping[str, nn.Parameter]) -> None:
    """Round parameters to bfloat16, in place, also where modules share them."""
    for parameter in parameters.values():
        parameter.data = parameter.data.to(torch.bfloat16)
