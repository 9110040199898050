"""Train the prior: the image embedding of a picture from its caption (arXiv 2204.06125, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, PriorTransformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from sememe.backbones.text import Tokenizer
from sememe.data.array_cache import ArrayCache
from sememe.diffusion.objectives import NoisePath, sample_losses
from sememe.gen1.arrays import CONTENT_ARRAY, pick_frames
from sememe.gen1.prior import EncodedTexts, ImageEmbeddings, encode_texts
from sememe.gen1.stage_settings import PriorNetwork, PriorSettings
from sememe.training.held_out import ItemPicker
from sememe.training.stage import Stage, StepLoss, make_rng

# Of captions that are encoded together. What an encoder makes of a text depends on the others in its last digits.
_BLOCK = 32


@dataclass(frozen=True, eq=False)
class PriorBatch:
    """Normalised image embeddings, and their captions as the text encoder gives them."""

    clean: ImageEmbeddings
    texts: EncodedTexts


class PriorStage(Stage[PriorBatch]):
    """Training stage of the prior; see `training.stage.Stage`."""

    name = "prior"

    def __init__(
        self,
        prior: PriorTransformer,
        scheduler: DDIMScheduler,
        tokenizer: Tokenizer,
        text_encoder: PreTrainedModel,
        cache: ArrayCache,
        settings: PriorSettings,
    ) -> None:
        self.prior = prior.train()
        self.scheduler, self.tokenizer, self.cache, self.settings = scheduler, tokenizer, cache, settings
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self._path = NoisePath.of_scheduler(scheduler)
        captions = dict.fromkeys(["", *cache.captions])
        self._captions, self._places = tuple(captions), {caption: place for place, caption in enumerate(captions)}
        self._known: dict[int, EncodedTexts] = {}
        self.items: ItemPicker = ItemPicker(cache.scenes)
        for statistic in (self.prior.clip_mean, self.prior.clip_std):
            statistic.requires_grad_(False)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"prior": self.prior}

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> PriorBatch:
        rng, count = make_rng(generator), self.settings.batch_size
        clips = self.items.draw(rng, count)
        frames = rng.integers(self.cache.arrays[CONTENT_ARRAY].shape[0], size=count)
        found = pick_frames(self.cache, CONTENT_ARRAY, clips, frames).to(device)
        clean = (found - self.prior.clip_mean.to(device)) / self.prior.clip_std.to(device)
        is_dropped = rng.random(count) < self.settings.drop_text
        captions = ["" if drop else self.cache.captions[index] for index, drop in zip(clips, is_dropped, strict=True)]
        return PriorBatch(clean, self._encode(captions, device))

    def _encode(self, captions: list[str], device: torch.device) -> EncodedTexts:
        """Encode captions, each once for the whole run, beside the same others whenever that is."""
        places = [divmod(self._places[caption], _BLOCK) for caption in captions]
        for block in {block for block, _ in places} - self._known.keys():
            texts = self._captions[block * _BLOCK : (block + 1) * _BLOCK]
            self._known[block] = encode_texts(self.tokenizer, self.text_encoder.to(device), texts)
        return EncodedTexts.join([self._known[block][place : place + 1] for block, place in places])

    def loss(self, batch: PriorBatch, generator: torch.Generator) -> StepLoss:
        clean, texts = batch.clean, batch.texts
        levels = torch.rand(len(clean), generator=generator, device=clean.device)
        noised = self._path.draw(clean, levels, generator)
        predicted = self.prior(
            noised.noisy, noised.timesteps, texts.pooled, texts.tokens, texts.mask
        ).predicted_image_embedding
        return StepLoss.of_samples(sample_losses(predicted, noised.target), levels)

    def companions(self) -> Mapping[str, Any]:
        return {"prior_scheduler": self.scheduler}


def make_prior(network: PriorNetwork, dim: int, num_tokens: int) -> PriorTransformer:
    """Return a prior with random weights, for embeddings of a length and texts of so many tokens."""
    return PriorTransformer(network.num_heads, network.head_dim, network.num_layers, dim, num_embeddings=num_tokens)


@torch.no_grad()
def set_statistics(prior: PriorTransformer, cache: ArrayCache) -> None:
    """Write mean and standard deviation of each number of the cached embeddings into a prior."""
    embeddings: Tensor = cache.select(CONTENT_ARRAY, range(len(cache))).flatten(0, 1).float()
    prior.clip_mean.copy_(embeddings.mean(dim=0, keepdim=True))
    prior.clip_std.copy_(embeddings.std(dim=0, keepdim=True).clamp_min(1e-3))


def make_scheduler() -> DDIMScheduler:
    """Return the noise schedule of a prior, as released ones have it."""
    return DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample_range=5.0)
