"""Train a small CLIP on the world: embeddings of pictures and of texts that say what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BaseImageProcessor,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerBase,
)

from sememe.backbones.pictures import prepare_pictures
from sememe.backbones.text import tokenize_prompts
from sememe.data.array_cache import ArrayCache
from sememe.gen1.arrays import pick_frames
from sememe.gen1.stage_settings import ClipNetwork, ClipSettings
from sememe.training.dataset_clips import FRAMES_ARRAY
from sememe.training.held_out import ItemPicker
from sememe.training.stage import Stage, StepLoss, make_rng


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """Pictures as the network takes them, tokens of their captions, and a number for each different caption."""

    pictures: Float[Tensor, "batch 3 height width"]
    ids: Int[Tensor, "batch token"]
    captions: Int[Tensor, " batch"]


class ClipStage(Stage[ClipBatch]):
    """Training stage of a CLIP; see `training.stage.Stage`."""

    name = "clip"

    def __init__(
        self,
        image_encoder: CLIPVisionModelWithProjection,
        image_processor: BaseImageProcessor,
        text_encoder: CLIPTextModelWithProjection,
        tokenizer: PreTrainedTokenizerBase,
        cache: ArrayCache,
        settings: ClipSettings,
    ) -> None:
        self.image_encoder, self.text_encoder = image_encoder.train(), text_encoder.train()
        self.image_encoder.requires_grad_(settings.trains_images)
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.cache, self.settings = cache, settings
        scenes: dict[str, list[int]] = {}
        for index, scene in enumerate(cache.scenes):
            scenes.setdefault(scene, []).append(index)
        self._scenes = list(scenes.values())
        self.items: ItemPicker = ItemPicker(list(scenes))
        captions = list_captions(cache)
        numbers = {caption: number for number, caption in enumerate(captions)}
        self._captions = torch.tensor([numbers[caption] for caption in cache.captions])
        self._ids, _ = tokenize_prompts(tokenizer, captions, int(tokenizer.model_max_length))

    def modules(self) -> Mapping[str, nn.Module]:
        return {"image_encoder": self.image_encoder, "text_encoder": self.text_encoder}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> ClipBatch:
        rng = make_rng(generator)
        clips = np.concatenate(
            [self._scenes[place] for place in rng.permutation(self.items.places)[: self.settings.num_scenes]]
        )
        frames = rng.integers(self.cache.arrays[FRAMES_ARRAY].shape[0], size=len(clips))
        found = pick_frames(self.cache, FRAMES_ARRAY, clips, frames).to(device)
        captions = self._captions[torch.from_numpy(clips)]
        pictures = prepare_pictures(found[..., :3], self.image_processor)
        return ClipBatch(pictures, self._ids[captions].to(device), captions.to(device))

    def loss(self, batch: ClipBatch, generator: torch.Generator) -> StepLoss:
        images = functional.normalize(self.image_encoder(batch.pictures).image_embeds.float(), dim=-1)
        texts = functional.normalize(self.text_encoder(batch.ids).text_embeds.float(), dim=-1)
        # In half precision cosines near 1 would be steps of 0.004, which the temperature makes large.
        with torch.autocast(images.device.type, enabled=False):
            logits = images @ texts.T / self.settings.temperature
        # Pictures with one caption share its text: each of them is right.
        same = (batch.captions[:, None] == batch.captions[None]).float()
        target = same / same.sum(dim=1, keepdim=True)
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        with torch.no_grad():
            right = same.gather(1, logits.argmax(dim=1, keepdim=True)).mean()
        return StepLoss(total=loss * len(images), num_samples=len(images), metrics={"accuracy": right})

    def companions(self) -> Mapping[str, Any]:
        # Calls leave their padding in the tokenizer, which would then be saved with it.
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.backend_tokenizer.no_truncation()
        return {"image_processor": self.image_processor, "tokenizer": self.tokenizer}


def make_image_encoder(network: ClipNetwork, image_size: int) -> CLIPVisionModelWithProjection:
    """Return a tower of pictures with random weights, for square pictures of a size."""
    config = CLIPVisionConfig(
        hidden_size=network.hidden_size,
        intermediate_size=2 * network.hidden_size,
        num_hidden_layers=network.num_image_layers,
        num_attention_heads=network.num_heads,
        image_size=image_size,
        patch_size=network.patch_size,
        projection_dim=network.hidden_size,
    )
    return CLIPVisionModelWithProjection(config)


def make_image_processor(image_size: int) -> CLIPImageProcessorPil:
    """Return the processor of such a tower."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )


def make_text_encoder(network: ClipNetwork, tokenizer: PreTrainedTokenizerBase) -> CLIPTextModelWithProjection:
    """Return a tower of texts with random weights, whose embedding is read off the tokenizer's end of a text."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=network.hidden_size,
        intermediate_size=2 * network.hidden_size,
        num_hidden_layers=network.num_text_layers,
        num_attention_heads=network.num_heads,
        max_position_embeddings=network.max_tokens,
        projection_dim=network.hidden_size,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModelWithProjection(config)


def list_captions(cache: ArrayCache) -> list[str]:
    """Return the captions of a cache, each once."""
    return list(dict.fromkeys(cache.captions))
