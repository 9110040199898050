"""Memory that a training step takes beside weights, by a step on tensors with shapes and without values."""

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sememe.compute.rehearsal import track_memory
from sememe.training.config import TrainingConfig
from sememe.training.frozen_weights import list_rounded, round_weights
from sememe.training.process import checkpoint_activations
from sememe.training.stage import Stage, step_generator


def measure_activations(stage: Stage, config: TrainingConfig, phase: str) -> int | None:
    """Count what a share of the first step takes at most at once beside weights and gradients, on one process.

    The stage is not to be trained afterwards: its frozen weights are rounded as in a run.

    Args:
        stage: Stage, its modules on the CPU.
        config: Settings of the run, whose precision is not "auto".
        phase: Phase.

    Returns:
        Bytes, for the whole of a share whatever `config.context` is; None where the loss depends on values that such
        tensors do not have.
    """
    round_weights(list_rounded(stage, config))
    stage.enter(phase)
    checkpoint_activations(stage.modules(), config)
    with torch.no_grad():
        batch: Any = stage.batch(0, step_generator(config.seed, 0, 0, "batch"), torch.device("cpu"))
    trained = [each for each in nn.ModuleDict(stage.modules()).parameters() if each.requires_grad]
    with FakeTensorMode(allow_non_fake_inputs=True):
        for parameter in trained:
            # Gradients are counted with the weights, so they are there before the step.
            parameter.grad = torch.zeros_like(parameter)
        try:
            with track_memory() as memory:
                with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
                    result = stage.loss(batch, step_generator(config.seed, 0, 0, "loss"))
                result.total.backward()
        except RuntimeError:  # of several kinds, by what the values are asked for
            return None
    return memory.peak_bytes
