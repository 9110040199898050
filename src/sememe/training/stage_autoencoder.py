"""Trains the refinement of a linear video autoencoder, whose code never changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sememe.backbones.autoencoder import frames_to_video
from sememe.backbones.linear_autoencoder import Latents, LinearVideoAutoencoder, NoiseLevels, Video
from sememe.checkpoints.components import load_component
from sememe.checkpoints.fingerprint import fingerprint_encoder
from sememe.data.array_cache import ArrayCache
from sememe.errors import RecipeError
from sememe.training.clips import ClipCollection, ClipSource
from sememe.training.config import AutoencoderSettings
from sememe.training.dataset_clips import open_clips
from sememe.training.held_out import ItemPicker
from sememe.training.networks import start_autoencoder
from sememe.training.recipes import AutoencoderRecipe
from sememe.training.samples import NUM_SAMPLES, lay_out
from sememe.training.stage import Announce, Stage, StepLoss, Weights, make_rng
from sememe.video.sheet import SheetRow

# Generations are given their first frame, and get it right; other users of a decoder may not.
_EXACT_FIRST_SHARE = 0.75


@runtime_checkable
class GenerationSource(Protocol):
    """Generated latents by number; `data.array_cache.ArrayCache` is one."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def select(self, name: str, indices: Tensor) -> Tensor:
        """Entries of items, (item, channel, frame, height, width) for "generated"."""
        ...


@dataclass(frozen=True)
class AutoencoderBatch:
    """Clips, and what a sampler made of the latents of the first of them."""

    video: Video
    generated: Float[Tensor, "generation channel latent_frame latent_height latent_width"] | None


class AutoencoderStage(Stage):
    """The autoencoder as a stage of training; see `training.stage.Stage`.

    Args:
        autoencoder: Autoencoder, whose linear maps stay as they are.
        clips: Clips that are encoded and decoded.
        settings: Settings of the loss.
        generations: Latents with a sampler's errors, one for each of the first clips; None to train on noise alone.
    """

    name = "autoencoder"

    def __init__(
        self,
        autoencoder: LinearVideoAutoencoder,
        clips: ClipSource,
        settings: AutoencoderSettings,
        generations: GenerationSource | None = None,
    ) -> None:
        self.autoencoder = autoencoder.train().requires_grad_(False)
        self.autoencoder.refiner.requires_grad_(True)
        # Convolutions on a CPU are faster with channels last.
        self.autoencoder.refiner.to(memory_format=torch.channels_last)
        self.clips, self.generations = clips, generations
        self.settings = settings
        # By number: the scene of a clip is not known before it is made.
        self.items: ItemPicker = ItemPicker([str(number) for number in range(len(clips))])

    def modules(self) -> Mapping[str, nn.Module]:
        return {"vae": self.autoencoder}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> AutoencoderBatch:
        rng = make_rng(generator)
        count, generated = self.settings.batch_size, None
        picked = self.items.draw(rng, count)
        if self.generations is not None:
            num_generated = round(self.settings.generated_share * count)
            places = self.items.draw(rng, num_generated, below=len(self.generations))
            picked = np.concatenate([places, picked[len(places) :]])
            generated = self.generations.select("generated", torch.from_numpy(places)).float().to(device)
        video = frames_to_video(np.stack([self.clips.frames(int(index)) for index in picked]))
        return AutoencoderBatch(video.to(device), generated)

    def loss(self, batch: Any, generator: torch.Generator) -> StepLoss:
        video = batch.video
        with torch.no_grad(), torch.autocast(video.device.type, enabled=False):
            clean = self.autoencoder.encode(video).latent_dist.mode()
            latents, levels = self._disturb(clean, generator)
            if batch.generated is not None:
                count = len(batch.generated)
                latents[:count] = batch.generated
                levels[:count] = (batch.generated - clean[:count]).square().mean(dim=(1, 3, 4)).sqrt()
        decoded = self.autoencoder.decode(latents, noise_levels=levels).sample
        pixel = functional.l1_loss(decoded, video)
        across = functional.l1_loss(decoded.diff(dim=-1), video.diff(dim=-1))
        down = functional.l1_loss(decoded.diff(dim=-2), video.diff(dim=-2))
        with torch.no_grad():
            psnr = -10 * torch.log10(functional.mse_loss(decoded.clamp(-1, 1), video) / 4)
        loss = pixel + self.settings.gradient_weight * (across + down)
        return StepLoss(total=loss * len(video), metrics={"psnr": psnr}, num_samples=len(video))

    def _disturb(self, clean: Latents, generator: torch.Generator) -> tuple[Latents, NoiseLevels]:
        """Latents with noise, and its standard deviation for every latent frame; more often little than much."""
        count, device = len(clean), clean.device
        levels = self.settings.max_noise * torch.rand(count, 1, generator=generator, device=device).square()
        levels = levels.repeat(1, clean.shape[2])
        if not self.autoencoder.is_for_images:
            levels[torch.rand(count, generator=generator, device=device) < _EXACT_FIRST_SHARE, 0] = 0.0
        noise = torch.randn(clean.shape, generator=generator, device=device)
        return clean + levels[:, None, :, None, None] * noise, levels

    def sample(self, generator: torch.Generator, device: torch.device) -> Sequence[SheetRow]:
        """Decode the latents of two clips."""
        video = self.batch(0, generator, device).video[:NUM_SAMPLES]
        with torch.autocast(device.type, enabled=False):
            decoded = self.autoencoder.decode(self.autoencoder.encode(video).latent_dist.mode()).sample
        return lay_out({"true": video, "decoded": decoded})

    def export(self, folder: Path, weights: Weights) -> None:
        """Write `vae/`."""
        self.autoencoder.save_pretrained(folder / "vae")


class AutoencoderPreparation:
    """Clips for the training of a video autoencoder; see `Preparation`.

    Raises:
        InputError: The clips, or the generations of them, cannot be read.
    """

    def __init__(self, recipe: AutoencoderRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        assert not parts, parts
        self._recipe, self._announce = recipe, announce
        self._clips = open_clips(recipe.clips, recipe.data, recipe.dataset)
        self._generations = None if recipe.generations is None else ArrayCache.open(recipe.generations)

    @property
    def inputs(self) -> Mapping[str, str]:
        return {"clips": self._clips.version}

    def begin(self, folder: Path) -> None:
        self._announce("fitting principal components")
        recipe = self._recipe
        start_autoencoder(recipe.network, self._clips, recipe.training.seed).save_pretrained(folder / "vae")

    def build(self, start: Path) -> Stage:
        autoencoder = load_component("vae", start / "vae")
        if self._generations is not None:
            _check_generations(self._generations, self._clips, fingerprint_encoder(autoencoder))
        return AutoencoderStage(autoencoder, self._clips, self._recipe.settings, self._generations)


def _check_generations(generations: ArrayCache, clips: ClipCollection, encoder: str) -> None:
    made_by = generations.describe("generated")
    is_same = (generations.origin, made_by["autoencoder"]) == (clips.origin, encoder)
    # Generations and clips belong together by their place.
    is_same = is_same and all(
        index < len(clips) and clips.item(index).clip == item.clip for index, item in enumerate(generations.items)
    )
    if not is_same:
        raise RecipeError(
            f"expected generations of the clips of {clips.origin} and autoencoder {encoder[:16]}, got those of "
            f"{generations.origin} and {made_by['autoencoder'][:16]}; start from the autoencoder of the "
            "model that made them (--init-from)"
        )
