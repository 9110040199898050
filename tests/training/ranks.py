"""A run with all that could differ between processes: on one, on two and on four of them."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from sememe.training.config import ScheduleConfig, TrainingConfig
from sememe.training.loop import train
from sememe.training.stage import Stage, StepLoss

NUM_STEPS = 10
CAN_SHARD = hasattr(FSDPModule, "set_reduce_scatter_unused_params")  # from torch 2.13 on


class Block(nn.Module):
    """Parameters of one, of three and of no rows, one that is never used, and a layer that only even batches use."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.rare, self.narrow = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.table = nn.Parameter(torch.full((1, 8), 0.1))
        self.register_parameter("unused", nn.Parameter(torch.ones(2, 2)))
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden: Tensor) -> Tensor:
        added = self.gain * self.layer(hidden).tanh() + self.table + self.narrow(hidden).sum(1, keepdim=True).tanh()
        if len(hidden) % 2 == 0:
            added = added + self.rare(hidden).tanh()
        result: Tensor = hidden + self.dropout(added)
        return result


class Network(nn.Module):
    """Two blocks between layers that stay whole; `encode` runs blocks beside `forward`."""

    forward_methods = ("encode",)

    def __init__(self) -> None:
        super().__init__()
        # Without a bias, whose gradient would be rounding alone: normalisation takes it out again.
        self.stem, self.statistics = nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 2)

    def encode(self, inputs: Tensor) -> Tensor:
        hidden = self.statistics(self.stem(inputs))
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        result: Tensor = self.head(hidden)
        return result


class RegressionStage(Stage):
    """A small regression with all that could differ between processes.

    Shares differ in size, in the parameters that they use and in the names of their metrics, dropout draws from the
    global generator, and there are running statistics in a module and beside it.
    """

    name = "regression"

    def __init__(self, weight_seed: int) -> None:
        torch.manual_seed(weight_seed)
        self.network = Network()
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
        error = self.network(self.network.encode(batch + noise - self.mean)) - batch[:, :2].sin()
        metrics = {"even" if len(batch) % 2 == 0 else "odd": error.abs().mean().detach()}
        return StepLoss(total=error.square().sum(), num_samples=len(batch), weight=error.numel(), metrics=metrics)

    def export(self, folder: Path) -> None:
        save_file(self.network.state_dict() | {"mean": self.mean}, folder / "network.safetensors")


def run(folder: Path, rank: int, num_ranks: int, port: str, num_steps: int = NUM_STEPS, **changes: Any) -> None:
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
    train(RegressionStage(rank), replace(config, **changes), folder)


def run_all(root: Path, number: int, ports: Sequence[str]) -> None:
    """What process `number` of four does: each run that has that many processes, and at last one alone."""
    runs: tuple[tuple[str, int, dict[str, Any]], ...] = (
        ("parallel", 2, {}),
        ("moved", 4, {"shard": 2 if CAN_SHARD else 1, "num_steps": NUM_STEPS - 4}),
        ("moved", 2, {"shard": -1 if CAN_SHARD else 1, "num_steps": NUM_STEPS - 2}),
        ("sharded_muon", 2, {"shard": 2 if CAN_SHARD else 1, "optimizer": "muon"}),
    )
    for port, (name, size, changes) in zip(ports, runs, strict=True):
        if number < size:
            run(root / name, number, size, port, **changes)
    if number == 0:
        run(root / "moved", 0, 1, "")
