"""Run by the test of data-parallel training: one rank of two, or both ranks' batches in a single process."""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sememe.training.config import TrainingConfig
from sememe.training.loop import train
from sememe.training.stage import Stage, StepLoss, Weights, step_generator

SEED = 11


class RegressionStage(Stage):
    """A small regression whose batch is one rank's, or those of `num_ranks` ranks together.

    The ranks' batches differ in size, and one parameter gets no gradient.
    """

    name = "regression"

    def __init__(self, num_ranks: int) -> None:
        torch.manual_seed(int(sys.argv[3]))
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self.network.register_parameter("unused", nn.Parameter(torch.ones(2, 2)))
        self.num_ranks = num_ranks

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> Tensor:
        ranks = range(self.num_ranks) if self.num_ranks > 1 else [int(os.environ["RANK"])]
        generators = {rank: step_generator(SEED, step, rank, "batch") for rank in ranks}
        return torch.cat([torch.randn(6 - 4 * rank, 4, generator=each) for rank, each in generators.items()]).to(device)

    def loss(self, batch: Tensor, generator: torch.Generator) -> StepLoss:
        error = self.network(batch) - batch[:, :2].sin()
        return StepLoss(total=error.square().sum(), num_samples=len(batch), weight=error.numel())

    def export(self, folder: Path, weights: Weights) -> None:
        save_file(self.network.state_dict(), folder / "network.safetensors")


if __name__ == "__main__":
    config = TrainingConfig(
        num_steps=6, precision="fp32", device="cpu", seed=SEED, log_every=1, num_threads=1, learning_rate=1e-2
    )
    train(RegressionStage(int(sys.argv[2])), config, Path(sys.argv[1]))
