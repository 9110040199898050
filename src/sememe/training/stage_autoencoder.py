"""Trains the causal video autoencoder: as a rule its decoder alone, behind an encoder that never changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from sememe.training.autoencoder_settings import AutoencoderSettings
from sememe.training.stage import StepLoss, Weights

__all__ = ["AutoencoderSettings", "AutoencoderStage", "ClipSource", "balance_bands", "fold_bands"]


@runtime_checkable
class ClipSource(Protocol):
    """Clips by number, for stages that train on pixels."""

    def __len__(self) -> int:
        """How many clips there are."""
        ...

    def frames(self, index: int) -> NDArray[np.uint8]:
        """The frames of clip `index`, (num_frames, height, width, 3) uint8."""
        ...


class AutoencoderStage:
    """The autoencoder as a stage of training; see `training.stage.Stage`."""

    name = "autoencoder"

    def __init__(self, autoencoder: nn.Module, clips: ClipSource, settings: AutoencoderSettings) -> None:
        self.autoencoder: Any = autoencoder.train()
        self.clips = clips
        self.settings = settings
        if settings.trains == "decoder":
            self.autoencoder.requires_grad_(False)
            self.autoencoder.decoder.requires_grad_(True)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"vae": self.autoencoder}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """(batch, 3, window, height, width) in [-1, 1]."""
        rng = np.random.Generator(np.random.PCG64(int(torch.randint(1 << 62, (1,), generator=generator))))
        picked = []
        for index in rng.integers(len(self.clips), size=self.settings.batch_size):
            frames = self.clips.frames(int(index))
            start = int(rng.integers(len(frames) - self.settings.window + 1))
            picked.append(frames[start : start + self.settings.window])
        return to_video(np.stack(picked)).to(device)

    def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
        settings = self.settings
        latents = self._encode(batch)
        spread = latents.detach().float().std()
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        decoded = self.autoencoder.decode(latents + settings.latent_noise * spread * noise).sample.float()
        pixel = functional.l1_loss(decoded, batch)
        across = functional.l1_loss(decoded.diff(dim=-1), batch.diff(dim=-1))
        down = functional.l1_loss(decoded.diff(dim=-2), batch.diff(dim=-2))
        motion = functional.l1_loss(decoded.diff(dim=2), batch.diff(dim=2))
        loss = pixel + settings.gradient_weight * (across + down) + settings.motion_weight * motion
        with torch.no_grad():
            psnr = -10 * torch.log10(functional.mse_loss(decoded.clamp(-1, 1), batch) / 4)
        return StepLoss(total=loss * len(batch), metrics={"psnr": psnr, "latent_std": spread}, num_samples=len(batch))

    def _encode(self, video: Tensor) -> Tensor:
        if self.settings.trains == "all":
            return self.autoencoder.encode(video).latent_dist.mode()
        # In full precision, as those who encode videos later do it: the decoder must meet the same latents.
        with torch.no_grad(), torch.autocast(video.device.type, enabled=False):
            return self.autoencoder.encode(video).latent_dist.mode()

    def export(self, folder: Path, weights: Weights) -> None:
        """Write `vae/`."""
        fold_bands(self.autoencoder).save_pretrained(folder / "vae")


def to_video(frames: NDArray[np.uint8]) -> Tensor:
    """Frames (..., frame, height, width, 3) as float32 in [-1, 1], (..., 3, frame, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -4))).float().div_(127.5).sub_(1)


class _Scale(nn.Module):
    """Multiplies a parameter by a fixed tensor of powers of two, so that nothing is rounded on the way."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        # Part of the state: a run that resumes must have the very scales that its weights were divided by.
        self.register_buffer("scale", scale)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.scale


@torch.no_grad()
def balance_bands(autoencoder: Any, video: Tensor) -> None:
    """Makes every wavelet band of an `AutoencoderKLCosmos` about equally large to the optimiser.

    The class folds pictures into wavelet bands of very different sizes, so that optimiser steps which suit the coarse
    ones may drown the fine ones in noise. The decoder's last convolution, and the encoder's first where it is trained,
    get scales measured on `video` (batch, 3, frame, height, width); what the network computes stays the same, bit for
    bit. `fold_bands` makes plain weights of them again.

    A second call does nothing.
    """
    first, last = autoencoder.encoder.conv_in.conv_s, autoencoder.decoder.conv_out.conv_t
    if parametrize.is_parametrized(last):
        return
    spread = autoencoder.encoder.patch_embed(video).std(dim=(0, 2, 3, 4)).clamp_min(2e-3)
    spread = spread.log2().round().exp2()
    parametrize.register_parametrization(last, "weight", _Scale(spread.view(-1, 1, 1, 1, 1).clone()))
    parametrize.register_parametrization(last, "bias", _Scale(spread))
    if first.weight.requires_grad:
        parametrize.register_parametrization(first, "weight", _Scale(1 / spread.view(1, -1, 1, 1, 1)))


@torch.no_grad()
def fold_bands(autoencoder: Any) -> Any:
    """A copy of the autoencoder, on the CPU, with the scales of `balance_bands` folded into plain weights."""
    # Made anew: torch removes a parametrization from the class that a module shares with its deep copy.
    folded = type(autoencoder).from_config(autoencoder.config)
    tensors = {name: tensor for name, tensor in autoencoder.state_dict().items() if ".parametrizations." not in name}
    for path, module in autoencoder.named_modules():
        tensors |= {f"{path}.{name}": getattr(module, name) for name in getattr(module, "parametrizations", {})}
    folded.load_state_dict(tensors)
    return folded
