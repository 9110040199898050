"""Trains the causal video autoencoder on short windows of clips."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from sememe.training.stage import StepLoss, Weights


class ClipSource(Protocol):
    """Clips by number, for stages that train on pixels."""

    def __len__(self) -> int:
        """How many clips there are."""
        ...

    def frames(self, index: int) -> NDArray[np.uint8]:
        """The frames of clip `index`, (num_frames, height, width, 3) uint8."""
        ...


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings:
    """What the autoencoder's training weighs.

    Windows of `window` frames start anywhere in a clip; every `full_every`-th batch takes `window_full` frames from the
    start instead, with fewer clips, so that long clips are met too. `latent_noise` is the standard deviation of the
    noise put on latents before decoding, in standard deviations of the batch's latents: it keeps the latent space
    smooth for the diffusion that comes after. `gradient_weight` weighs the error of spatial differences, and
    `motion_weight` that of temporal ones, against the error of pixels (all mean absolute).
    """

    batch_size: int = 8
    window: int = 9
    window_full: int = 17
    full_every: int = 4
    latent_noise: float = 0.1
    latent_penalty: float = 1e-4
    gradient_weight: float = 0.5
    motion_weight: float = 0.5


class AutoencoderStage:
    """The autoencoder as a stage of training; see `training.stage.Stage`."""

    name = "autoencoder"

    def __init__(self, autoencoder: nn.Module, clips: ClipSource, settings: AutoencoderSettings) -> None:
        self.autoencoder = autoencoder.train().to(memory_format=torch.channels_last_3d)
        self.clips = clips
        self.settings = settings

    def modules(self) -> Mapping[str, nn.Module]:
        return {"vae": self.autoencoder}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """(batch, 3, window, height, width) in [-1, 1]."""
        settings = self.settings
        is_full = step % settings.full_every == settings.full_every - 1
        window = settings.window_full if is_full else settings.window
        count = max(1, settings.batch_size * settings.window // window)
        rng = np.random.Generator(np.random.PCG64(int(torch.randint(1 << 62, (1,), generator=generator))))
        picked = []
        for index in rng.integers(len(self.clips), size=count):
            frames = self.clips.frames(int(index))
            start = int(rng.integers(len(frames) - window + 1))
            frames = frames[start : start + window]
            picked.append(frames[:, :, ::-1] if rng.random() < 0.5 else frames)
        video = torch.from_numpy(np.ascontiguousarray(np.stack(picked).transpose(0, 4, 1, 2, 3)))
        return video.to(device).float().div_(127.5).sub_(1)

    def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
        settings = self.settings
        latents = self.autoencoder.encode(batch).latent_dist.mode()
        spread = latents.detach().float().std()
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        decoded = self.autoencoder.decode(latents + settings.latent_noise * spread * noise).sample.float()
        pixel = functional.l1_loss(decoded, batch)
        across = functional.l1_loss(decoded.diff(dim=-1), batch.diff(dim=-1))
        down = functional.l1_loss(decoded.diff(dim=-2), batch.diff(dim=-2))
        motion = functional.l1_loss(decoded.diff(dim=2), batch.diff(dim=2))
        loss = pixel + settings.gradient_weight * (across + down) + settings.motion_weight * motion
        loss = loss + settings.latent_penalty * latents.float().square().mean()
        with torch.no_grad():
            psnr = -10 * torch.log10(functional.mse_loss(decoded, batch) / 4)
        return StepLoss(loss=loss, metrics={"psnr": psnr, "latent_std": spread}, num_samples=len(batch))

    def export(self, folder: Path, weights: Weights) -> None:
        fold_bands(self.autoencoder).save_pretrained(folder)


class _Scale(nn.Module):
    """Multiplies a parameter by a fixed tensor."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


@torch.no_grad()
def balance_bands(autoencoder: Any, video: Tensor) -> None:
    """Makes every wavelet band of an `AutoencoderKLCosmos` equally large to the optimiser.

    The class folds pictures into wavelet bands whose sizes differ a hundredfold; without this the optimiser's steps
    drown the fine bands in noise (11 dB instead of 17 after 80 steps). The first and the last convolution are given
    scales measured on `video` (batch, 3, frame, height, width); `export` folds them back into plain weights.
    """
    bands = autoencoder.encoder.patch_embed(video)
    spread = bands.std(dim=(0, 2, 3, 4)).clamp_min(1e-3)
    first, last = autoencoder.encoder.conv_in.conv_s, autoencoder.decoder.conv_out.conv_t
    parametrize.register_parametrization(first, "weight", _Scale(1 / spread.view(1, -1, 1, 1, 1)), unsafe=True)
    parametrize.register_parametrization(last, "weight", _Scale(spread.view(-1, 1, 1, 1, 1)), unsafe=True)
    parametrize.register_parametrization(last, "bias", _Scale(spread), unsafe=True)


def fold_bands(autoencoder: Any) -> Any:
    """A copy of the autoencoder with the scales of `balance_bands` folded into plain weights."""
    folded = copy.deepcopy(autoencoder)
    for module in folded.modules():
        for name in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return folded
