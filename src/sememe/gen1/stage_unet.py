"""Train the U-Net in the four phases of the paper (arXiv 2302.03011, section 3.5 and supplement)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, ModelMixin, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from sememe.data.array_cache import ArrayCache
from sememe.diffusion.objectives import NoisePath, sample_losses
from sememe.errors import RecipeError
from sememe.gen1.arrays import CONTENT_ARRAY, STRUCTURE_ARRAY, pick_frames
from sememe.gen1.blocks_unet import TemporalConv, TemporalTransformer
from sememe.gen1.models import Conditions, encode_structure
from sememe.gen1.network_unet import Gen1UNet
from sememe.gen1.settings import MAX_LEVEL
from sememe.gen1.shapes import Latents, StructureVideo
from sememe.gen1.stage_settings import PHASES, UNetNetwork, UNetSettings
from sememe.training.held_out import ItemPicker
from sememe.training.samples import NUM_SAMPLES, Sampler
from sememe.training.stage import Stage, StepLoss, make_rng
from sememe.video.sheet import SheetRow


@dataclass(frozen=True, eq=False)
class UNetBatch:
    """A batch of latents, content and structure; images are videos of one frame.

    Attributes:
        clean: Latents.
        content: Embedding of one frame of each; zeros where content is left out.
        structure: Structure, or None for a phase without it.
        levels: Level of each structure in 0..7, on the CPU.
    """

    clean: Latents
    content: Float[Tensor, "batch dim"]
    structure: StructureVideo | None
    levels: Int[Tensor, " batch"]


class UNetStage(Stage[UNetBatch]):
    """Training stage of the U-Net; see `training.stage.Stage`. Its phases are those of `UNetRecipe`.

    Args:
        unet: An inflated U-Net.
        vae: Autoencoder of the latents, which encodes structure too; frozen.
        scheduler: Noise schedule.
        cache: Latents, structure and content.
        settings: Settings of the batches.
    """

    name = "unet"

    def __init__(
        self, unet: Gen1UNet, vae: ModelMixin, scheduler: DDIMScheduler, cache: ArrayCache, settings: UNetSettings
    ) -> None:
        self.unet = unet.train()
        self.vae = vae.eval().requires_grad_(False)
        self.scheduler = scheduler
        self.cache, self.settings = cache, settings
        self._path = NoisePath.of_scheduler(scheduler)
        self._phase = PHASES[-1]
        self.items: ItemPicker = ItemPicker(cache.scenes)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"unet": self.unet}

    def enter(self, phase: str) -> None:
        if phase not in PHASES:
            raise RecipeError(f"the stage {self.name} has the phases {', '.join(PHASES)}, got {phase!r}")
        self._phase = phase
        for module in self.unet.modules():
            if isinstance(module, TemporalConv | TemporalTransformer):
                module.requires_grad_(phase != "content")

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> UNetBatch:
        rng, settings, cache = make_rng(generator), self.settings, self.cache
        is_image = rng.random() < settings.image_share or self._phase == "content"
        clips = self.items.draw(rng, settings.image_batch_size if is_image else settings.batch_size)
        frames = rng.integers(cache.arrays[CONTENT_ARRAY].shape[0], size=len(clips))
        has_content = torch.from_numpy(rng.random(len(clips)) >= settings.drop_content).to(device)
        levels = rng.integers(MAX_LEVEL + 1, size=len(clips)) if self._phase == "levels" else np.zeros(len(clips), int)
        content = pick_frames(cache, CONTENT_ARRAY, clips, frames).to(device)
        structure = None
        if is_image:
            clean = cache.select("clean", clips)[torch.arange(len(clips)), :, torch.from_numpy(frames)].unsqueeze(2)
            if self._phase in ("structure", "levels"):
                structure = pick_frames(cache, STRUCTURE_ARRAY, clips, frames).unsqueeze(1).to(device)
        else:
            clean = cache.select("clean", clips)
            if self._phase in ("structure", "levels"):
                structure = cache.select(STRUCTURE_ARRAY, clips).float().to(device)
        return UNetBatch(clean.float().to(device), content * has_content[:, None], structure, torch.from_numpy(levels))

    def loss(self, batch: UNetBatch, generator: torch.Generator) -> StepLoss:
        clean = batch.clean
        levels = torch.rand(len(clean), generator=generator, device=clean.device)
        noised = self._path.draw(clean, levels, generator)
        predicted = self._predict(noised.noisy, noised.timesteps, batch.content, self._find_conditions(batch))
        losses = sample_losses(predicted, noised.target)
        # Images and videos weigh as much as they have frames.
        num_frames = clean.shape[2]
        kind = "image_loss" if num_frames == 1 else "video_loss"
        return StepLoss.of_samples(
            losses,
            levels,
            total=losses.sum() * num_frames,
            weight=float(len(losses) * num_frames),
            metrics={kind: losses.mean().detach()},
        )

    def _find_conditions(self, batch: UNetBatch) -> Conditions:
        """Return the channels of structure and level: zeros in phases without structure."""
        clean = batch.clean
        if batch.structure is None:
            num_channels = self.unet.config.in_channels - clean.shape[1]
            return clean.new_zeros(len(clean), num_channels, *clean.shape[2:])
        with torch.no_grad(), torch.autocast(clean.device.type, enabled=False):
            return encode_structure(self.vae.to(clean.device), batch.structure, batch.levels)

    def _predict(self, noisy: Latents, timesteps: Tensor, content: Tensor, conditions: Conditions) -> Latents:
        predicted: Latents = self.unet(
            torch.cat([noisy, conditions], dim=1),
            timesteps,
            content.unsqueeze(1),
            return_dict=False,
            is_temporal=noisy.shape[2] > 1,
        )[0]
        return predicted

    def sample(self, generator: torch.Generator, device: torch.device) -> Sequence[SheetRow]:
        """Make two clips, or images in the phase without videos, from their own content and structure."""
        clips, cache = self.items.places[:NUM_SAMPLES], self.cache
        num_frames = 1 if self._phase == "content" else cache.arrays["clean"].shape[1]
        structure = None
        if self._phase in ("structure", "levels"):
            structure = cache.select(STRUCTURE_ARRAY, clips).float().to(device)
        batch = UNetBatch(
            clean=cache.select("clean", clips)[:, :, :num_frames].float().to(device),
            content=pick_frames(cache, CONTENT_ARRAY, clips, np.zeros(len(clips), int)).to(device),
            structure=structure,
            levels=torch.zeros(len(clips), dtype=torch.int64),
        )
        conditions, sampler = self._find_conditions(batch), Sampler(self.vae, self.scheduler)
        made = sampler.make(
            lambda noisy, timesteps: self._predict(noisy, timesteps, batch.content, conditions), batch.clean, generator
        )
        return sampler.show({"true": batch.clean, "made": made})

    def companions(self) -> Mapping[str, Any]:
        return {"scheduler": self.scheduler}


def make_unet(network: UNetNetwork, num_channels: int, content_dim: int) -> Gen1UNet:
    """Return a U-Net with random weights, whose layers for time and structure change nothing yet."""
    levels = range(len(network.block_out_channels))
    attends = [level in network.attention_levels for level in levels]
    image_model = UNet2DConditionModel(
        in_channels=num_channels,
        out_channels=num_channels,
        block_out_channels=network.block_out_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        layers_per_block=network.layers_per_block,
        cross_attention_dim=content_dim,
        attention_head_dim=network.num_heads,
        norm_num_groups=network.norm_num_groups,
    )
    return Gen1UNet.from_image_model(image_model, network.max_frames)


def make_scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's noise schedule for v-prediction, whose last timestep is pure noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
