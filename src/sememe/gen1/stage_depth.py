"""Train a small depth network on the world, which knows how far away each pixel is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessorPil,
)

from sememe.backbones.pictures import prepare_pictures
from sememe.data.array_cache import ArrayCache
from sememe.gen1.arrays import pick_frames
from sememe.gen1.stage_settings import DepthNetwork, DepthSettings
from sememe.training.dataset_clips import FRAMES_ARRAY
from sememe.training.held_out import ItemPicker
from sememe.training.stage import Stage, StepLoss, make_rng


@dataclass(frozen=True, eq=False)
class DepthBatch:
    """Pictures as the network takes them, and the nearness of each pixel, 1 / distance."""

    pictures: Float[Tensor, "batch 3 height width"]
    nearness: Float[Tensor, "batch height width"]


class DepthStage(Stage[DepthBatch]):
    """Training stage of a depth network; see `training.stage.Stage`."""

    name = "depth"

    def __init__(
        self,
        model: DepthAnythingForDepthEstimation,
        processor: DPTImageProcessorPil,
        cache: ArrayCache,
        settings: DepthSettings,
    ) -> None:
        self.model, self.processor, self.cache, self.settings = model.train(), processor, cache, settings
        self.items: ItemPicker = ItemPicker(cache.scenes)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"depth_estimator": self.model}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> DepthBatch:
        """Draw frames, half of them mirrored together with their depth."""
        rng, count = make_rng(generator), self.settings.batch_size
        clips = self.items.draw(rng, count)
        frames = rng.integers(self.cache.arrays[FRAMES_ARRAY].shape[0], size=count)
        found = pick_frames(self.cache, FRAMES_ARRAY, clips, frames).to(device)
        mirrored = torch.from_numpy(rng.random(count) < 0.5).to(device)
        found = torch.where(mirrored[:, None, None, None], found.flip(2), found)
        return DepthBatch(prepare_pictures(found[..., :3], self.processor), 1.0 / found[..., 3])

    def loss(self, batch: DepthBatch, generator: torch.Generator) -> StepLoss:
        found = self.model(batch.pictures).predicted_depth.float()
        place = functional.l1_loss(found, batch.nearness)
        across = functional.l1_loss(found.diff(dim=-1), batch.nearness.diff(dim=-1))
        down = functional.l1_loss(found.diff(dim=-2), batch.nearness.diff(dim=-2))
        loss = place + self.settings.gradient_weight * (across + down)
        return StepLoss(total=loss * len(found), num_samples=len(found), metrics={"error": place.detach()})

    def companions(self) -> Mapping[str, Any]:
        return {"depth_processor": self.processor}


def make_depth_estimator(network: DepthNetwork, image_size: int) -> DepthAnythingForDepthEstimation:
    """Return a depth network with random weights, for square pictures of a size."""
    num_layers, size = network.num_layers, network.fusion_size
    backbone = Dinov2Config(
        hidden_size=network.hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=network.num_heads,
        mlp_ratio=2,
        image_size=image_size,
        patch_size=network.patch_size,
        out_indices=[num_layers - 3, num_layers - 2, num_layers - 1, num_layers],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=network.patch_size,
        reassemble_hidden_size=network.hidden_size,
        neck_hidden_sizes=[size, size, 2 * size, 2 * size],
        fusion_hidden_size=size,
        head_hidden_size=network.head_size,
    )
    model = DepthAnythingForDepthEstimation(config)
    # The class's own weights, of standard deviation 0.02, hardly let anything through layers as narrow as these.
    for layer in (*model.neck.modules(), *model.head.modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.reset_parameters()
    # What the head gives passes a ReLU: below 0 in all places from the start, it would never learn.
    torch.nn.init.constant_(model.head.conv3.bias, 0.5)
    return model


def make_depth_processor(image_size: int) -> DPTImageProcessorPil:
    """Return the processor of such a network."""
    return DPTImageProcessorPil(size={"height": image_size, "width": image_size})
