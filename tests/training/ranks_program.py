"""Run by the test of runs on several processes: forks into four, and trains on four of them, on two and on one."""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sememe.training.config import ScheduleConfig, TrainingConfig
from sememe.training.loop import train
from sememe.training.stage import Stage, StepLoss, Weights

NUM_STEPS = 10


class RegressionStage(Stage):
    """A small regression with all that could differ between processes.

    Shares differ in size and in the names of their metrics, one parameter gets no gradient, dropout draws from the
    global generator, and there are running statistics in a module and beside it.
    """

    name = "regression"

    def __init__(self, weight_seed: int) -> None:
        torch.manual_seed(weight_seed)
        # Without a bias, whose gradient would be rounding alone: normalisation takes it out again.
        layers = (nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2))
        self.network = nn.Sequential(*layers)
        self.network.register_parameter("unused", nn.Parameter(torch.ones(2, 2)))
        self.mean = torch.zeros(4)

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> Tensor:
        size = int(torch.randint(3, 9, (1,), generator=generator))
        return torch.randn(size, 4, generator=generator).to(device)

    def loss(self, batch: Tensor, generator: torch.Generator) -> StepLoss:
        self.mean.lerp_(batch.mean(0), 0.1)
        noise = 0.1 * torch.randn(batch.shape, generator=generator)
        error = self.network(batch + noise - self.mean) - batch[:, :2].sin()
        metrics = {"even" if len(batch) % 2 == 0 else "odd": error.abs().mean().detach()}
        return StepLoss(total=error.square().sum(), num_samples=len(batch), weight=error.numel(), metrics=metrics)

    def export(self, folder: Path, weights: Weights) -> None:
        save_file(self.network.state_dict() | {"mean": self.mean}, folder / "network.safetensors")


def run(folder: Path, rank: int, num_ranks: int, port: str, num_steps: int = NUM_STEPS) -> None:
    os.environ |= {"WORLD_SIZE": str(num_ranks), "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    config = TrainingConfig(
        num_steps=num_steps,
        num_shares=4,
        learning_rate=1e-2,
        schedule=ScheduleConfig(shape="constant"),
        precision="fp32",
        device="cpu",
        log_every=2,
        num_threads=1,
    )
    # The other ranks begin with other weights on purpose: the main rank's must be given to them.
    train(RegressionStage(rank), config, folder)


def run_all(root: Path, number: int, ports: list[str]) -> None:
    run(root / "four", number, 4, ports[0])
    run(root / "moved", number, 4, ports[1], NUM_STEPS - 4)
    if number < 2:
        run(root / "two", number, 2, ports[2])
        run(root / "moved", number, 2, ports[3])


if __name__ == "__main__":
    run(Path(sys.argv[1]) / "one", 0, 1, "")
    # Forked after that, because importing torch, at once and in its first step, takes far longer than all training.
    children = []
    for rank in range(4):
        child = os.fork()
        if not child:
            run_all(Path(sys.argv[1]), rank, sys.argv[2:])
            sys.exit(0)
        children.append(child)
    sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
