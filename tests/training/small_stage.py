"""A small stage that has everything that makes resuming hard: noise, dropout, buffers, channels-last weights."""

import os
import signal
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sememe.training.stage import Stage, StepLoss


class SmallNetwork(nn.Module):
    """Token and picture in, three numbers out."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(8, 12)
        self.convolution = nn.Conv2d(3, 6, 2)
        self.convolution.weight.data = self.convolution.weight.data.to(memory_format=torch.channels_last)
        self.statistics = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(12 + 6, 16)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(16, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(requires_grad=False)

    def forward(self, tokens: Tensor, pictures: Tensor) -> Tensor:
        seen = self.statistics(self.convolution(pictures)).mean(dim=(2, 3))
        hidden = self.dropout(torch.relu(self.hidden(torch.cat([self.token_embedding(tokens), seen], dim=1))))
        result: Tensor = self.frozen(self.head(hidden))
        return result


class SmallStage(Stage):
    """Trains a `SmallNetwork` on made-up data; can break, or ask for an end, at a given batch."""

    name = "small"

    def __init__(self, *, break_at: int | None = None, stop_at: int | None = None) -> None:
        torch.manual_seed(7)
        self.network = SmallNetwork()
        self.break_at, self.stop_at = break_at, stop_at
        self.batches: list[int] = []

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> tuple[int, Tensor, Tensor]:
        self.batches.append(step)
        tokens = torch.randint(0, 8, (5,), generator=generator)
        return step, tokens.to(device), torch.randn(5, 3, 4, 4, generator=generator).to(device)

    def loss(self, batch: tuple[int, Tensor, Tensor], generator: torch.Generator) -> StepLoss:
        step, tokens, pictures = batch
        noise = torch.randn(5, 3, generator=generator, device=generator.device)
        wanted = torch.sin(tokens[:, None] + torch.arange(3)) + 0.1 * noise
        per_sample = (self.network(tokens, pictures) - wanted).square().mean(dim=1).float()
        total = per_sample.sum() * (float("nan") if step == self.break_at else 1.0)
        if step == self.stop_at:
            self.stop_at = None  # a second signal would end the process at once
            os.kill(os.getpid(), signal.SIGTERM)
        return StepLoss(total=total, num_samples=5, metrics={"noise": noise.mean(), "one": 1.0})

    def export(self, folder: Path) -> None:
        save_file(
            {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()},
            folder / "small.safetensors",
        )
