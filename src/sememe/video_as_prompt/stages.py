"""Train the backbone and the expert: from recipes to networks and data, and what a step of each computes."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from diffusers import ModelMixin, WanTransformer3DModel
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sememe.checkpoints.components import load_component
from sememe.data.array_cache import ArrayCache
from sememe.data.pairing import draw_captions, pick_captions
from sememe.diffusion.objectives import FLOW, NoisePath, NoisySamples, sample_losses, sample_sigma
from sememe.errors import RecipeError
from sememe.training.held_out import ItemPicker
from sememe.training.networks import (
    choose_attention,
    make_scheduler,
    make_text_encoder,
    train_tokenizer,
)
from sememe.training.preparation import CachedPreparation
from sememe.training.recipes import SchedulerSettings
from sememe.training.samples import NUM_SAMPLES, Sampler, find_sampler
from sememe.training.stage import Stage, StepLoss, make_rng
from sememe.training.text_source import EncodedText, TextSource
from sememe.video.sheet import SheetRow
from sememe.video_as_prompt.blocks_wan import JointAttnProcessor
from sememe.video_as_prompt.families import BackboneFamily, TransformerAlone, WanFamily
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.shapes import ImageEmbeds, VideoLatents
from sememe.video_as_prompt.stage_settings import (
    BackboneRecipe,
    BackboneSettings,
    NoisedPairSettings,
    VideoAsPromptModelRecipe,
    WanNetwork,
)

logger = logging.getLogger(__name__)


@runtime_checkable
class LatentSource(Protocol):
    """Named arrays of clips by number; `data.array_cache.ArrayCache` is one."""

    @property
    def conditions(self) -> Sequence[str]:
        """The condition that each item shows."""
        ...

    @property
    def scenes(self) -> Sequence[str]:
        """The scene that each item is filmed in."""
        ...

    @property
    def captions(self) -> Sequence[str]:
        """Who and where, for each item."""
        ...

    @property
    def full_captions(self) -> Sequence[str]:
        """Who, where and what happens, for each item."""
        ...

    @property
    def buckets(self) -> Sequence[str]:
        """What items of one length and size have in common."""
        ...

    @property
    def references(self) -> Sequence[Sequence[int]]:
        """The items that may be each item's reference; none for all others of its condition."""
        ...

    def select(self, name: str, indices: Int[Tensor, " item"]) -> Float[Tensor, "item *entry"]:
        """Entries of items of one bucket: (item, channel, frame, height, width) for "clean" and "first_frame".

        "image" has (item, token, dim).
        """
        ...


Captions = Shaped[Tensor, "batch *text"]
"""Captions in the form of a `TextSource`: numbers of tokens, or embeddings."""


@dataclass(frozen=True)
class ClipBatch:
    """Clips as networks are trained on them, one entry of each tensor for a clip.

    Attributes:
        clean: Latents of the clips.
        text: Captions.
        first_frames: What the backbone is given of their first frames; None for a text-to-video backbone.
        image_embeds: Image embeddings of their first frames; None for a backbone that reads none.
    """

    clean: VideoLatents
    text: Captions
    first_frames: VideoLatents | None
    image_embeds: ImageEmbeds | None

    def to(self, device: torch.device) -> "ClipBatch":
        """Move all tensors to a device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> "ClipBatch":
        """Apply `change` to every tensor."""
        first, images = self.first_frames, self.image_embeds
        return ClipBatch(
            clean=change(self.clean),
            text=change(self.text),
            first_frames=None if first is None else change(first),
            image_embeds=None if images is None else change(images),
        )


def read_items(
    latents: LatentSource,
    text: TextSource,
    picked: NDArray[np.integer],
    kinds: NDArray[Any],
    family: BackboneFamily,
) -> ClipBatch:
    """Read items as a backbone is given them; `kinds` says which caption each one has."""
    captions, full = ([each[index] for index in picked] for each in (latents.captions, latents.full_captions))
    indices = torch.from_numpy(picked)
    names = ("clean", *family.list_arrays())
    arrays = {name: latents.select(name, indices).float() for name in names}
    return ClipBatch(
        clean=arrays["clean"],
        text=text.pick(pick_captions(kinds, captions, full)),
        first_frames=arrays.get("first_frame"),
        image_embeds=arrays.get("image"),
    )


def add_noise(
    clean: VideoLatents,
    path: NoisePath,
    settings: BackboneSettings | NoisedPairSettings,
    generator: torch.Generator,
    num_outcomes: int = 1,
) -> NoisySamples:
    """Add noise at random levels; `num_outcomes` successive parts of the batch get the same noise and levels."""
    count = len(clean) // num_outcomes
    sigma = sample_sigma(count, generator, settings.sigma_mean, settings.sigma_std, settings.sigma_shift)
    return path.draw(clean, sigma, generator)


class BackboneStage(Stage[ClipBatch]):
    """The backbone and its text encoder as a stage of training; see `training.stage.Stage`.

    The captions of items for which `unnamed` (item,) is True never say what happens in them. Without a
    `sampler` there are no samples to look at.
    """

    name = "backbone"

    def __init__(
        self,
        transformer: Any,
        text_encoder: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        latents: LatentSource,
        settings: BackboneSettings,
        unnamed: NDArray[np.bool_] | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.sampler = sampler
        self.transformer = transformer.train()
        for block in transformer.blocks:
            block.attn1.set_processor(JointAttnProcessor())
        self.text_encoder = text_encoder.train()
        self.tokenizer = tokenizer
        self.latents = latents
        self.settings = settings
        self._text = EncodedText(tokenizer, text_encoder)
        self._family = WanFamily(TransformerAlone(transformer))
        self._unnamed = np.zeros(len(latents.conditions), bool) if unnamed is None else unnamed
        self.items: ItemPicker = ItemPicker(latents.scenes, latents.buckets)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"transformer": self.transformer, "text_encoder": self.text_encoder}

    def split_by_tokens(self) -> Collection[str]:
        return ("transformer",)

    def batch(self, step: int, generator: torch.Generator, device: torch.device) -> ClipBatch:
        rng, settings = make_rng(generator), self.settings
        picked = self.items.draw(rng, settings.batch_size)
        choice = draw_captions(settings.captions, rng, num_targets=len(picked), unnamed_targets=self._unnamed[picked])
        return read_items(self.latents, self._text, picked, choice.targets, self._family).to(device)

    def loss(self, batch: ClipBatch, generator: torch.Generator) -> StepLoss:
        noised = add_noise(batch.clean, FLOW, self.settings, generator)
        channels = self._family.join_condition(noised.noisy, batch.first_frames)
        predicted = self.transformer(channels, noised.timesteps, self._text.embed(batch.text)).sample
        return StepLoss.of_samples(sample_losses(predicted, noised.target), noised.levels)

    def sample(self, generator: torch.Generator, device: torch.device) -> Sequence[SheetRow]:
        """Continue the first pictures of two clips."""
        if self.sampler is None:
            return ()
        batch = self.batch(0, generator, device)
        batch = batch.map(lambda tensor: tensor[:NUM_SAMPLES])
        text = self._text.embed(batch.text)

        def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            predicted: torch.Tensor = self.transformer(
                self._family.join_condition(noisy, batch.first_frames), timesteps, text
            ).sample
            return predicted

        made = self.sampler.make(predict, batch.clean, generator)
        return self.sampler.show({"true": batch.clean, "made": made})

    def companions(self) -> Mapping[str, Any]:
        return {"tokenizer": self.tokenizer}


class BackbonePreparation(CachedPreparation):
    """Latents for the training of a backbone and its text encoder."""

    arrays = ("first_frame",)
    _recipe: BackboneRecipe

    def make(self) -> Mapping[str, Any]:
        recipe, cache = self._recipe, self._cache
        self._announce("fitting the tokenizer")
        tokenizer = train_tokenizer(cache.full_captions, recipe.text)
        text_encoder = make_text_encoder(recipe.text, len(tokenizer))
        transformer = make_transformer(recipe.network, cache.arrays["clean"].shapes[0][0], recipe.text.d_model)
        return {"tokenizer": tokenizer, "text_encoder": text_encoder, "transformer": transformer}

    def build(self, start: Path) -> BackboneStage:
        recipe, cache = self._recipe, self._cache
        transformer = load_component("transformer", start / "transformer")
        if not isinstance(transformer, WanTransformer3DModel):
            raise RecipeError(
                f"only Wan backbones are trained as a whole, got {type(transformer).__name__}; train an expert"
            )
        check_channels(transformer, cache)
        text_encoder, tokenizer = (load_component(name, start / name) for name in ("text_encoder", "tokenizer"))
        unnamed = find_unseen(cache, recipe.unseen)
        sampler = find_sampler(self._parts, make_scheduler(SchedulerSettings()))
        stage = BackboneStage(transformer, text_encoder, tokenizer, cache, recipe.settings, unnamed, sampler)
        # The stage gives the blocks processors of its own, which the choice is written to.
        choose_attention(transformer, recipe.training.device)
        return stage


def build_pipeline(recipe: VideoAsPromptModelRecipe, parts: Mapping[str, Path]) -> VideoAsPromptPipeline:
    """Return the pipeline of a model, in float32.

    Raises:
        ModelError: A part is not whole, or does not fit the others.
    """
    transformer = WanVideoAsPromptTransformer.from_folders(parts["transformer"], parts["expert"], torch.float32)
    if recipe.expert_share != 1:
        transformer.blend_expert_with_backbone(recipe.expert_share)
    return VideoAsPromptPipeline(
        tokenizer=load_component("tokenizer", parts["tokenizer"]),
        text_encoder=load_component("text_encoder", parts["text_encoder"]),
        vae=load_component("vae", parts["vae"]),
        transformer=transformer,
        scheduler=make_scheduler(recipe.scheduler),
        generation_defaults=recipe.generation.to_config(),
    )


def make_transformer(network: WanNetwork, latent_channels: int, text_dim: int) -> WanTransformer3DModel:
    """Return an image-to-video transformer with random weights; it reads latents, mask and conditioning latents."""
    return WanTransformer3DModel(
        patch_size=(1, network.patch_size, network.patch_size),
        num_attention_heads=network.num_attention_heads,
        attention_head_dim=network.attention_head_dim,
        in_channels=2 * latent_channels + network.num_mask_channels,
        out_channels=latent_channels,
        text_dim=text_dim,
        freq_dim=network.freq_dim,
        ffn_dim=network.ffn_dim,
        num_layers=network.num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=network.rope_max_seq_len,
    )


def find_unseen(cache: ArrayCache, names: Collection[str] | None) -> NDArray[np.bool_]:
    """Return which clips are kept for evaluation, (clip,): those of the named conditions, or of no "train" split."""
    if names is None:
        return np.array([split != "train" for split in cache.splits])
    return np.array([condition in names for condition in cache.conditions])


def select_conditions(
    cache: ArrayCache, unseen: NDArray[np.bool_], num_conditions: int | None, max_references: int = 1
) -> ArrayCache:
    """Return the seen clips, or those of some of their conditions: a smaller number takes a part of a larger one's.

    Conditions with too few scenes are left out, with a warning: a target and its references need one each.

    Raises:
        RecipeError: There are fewer conditions than that.
    """
    scenes: dict[str, set[str]] = {}
    for place in np.flatnonzero(~unseen).tolist():
        scenes.setdefault(cache.conditions[place], set()).add(cache.scenes[place])
    lonely = sorted(condition for condition, found in scenes.items() if len(found) <= max_references)
    if lonely:
        logger.warning("left out, because %d scenes are needed: %s", max_references + 1, ", ".join(lonely))
    seen = sorted(scenes.keys() - set(lonely))
    kept = set(seen)
    places = [place for place in np.flatnonzero(~unseen).tolist() if cache.conditions[place] in kept]
    if num_conditions is None:
        return cache.only(places)
    if num_conditions > len(seen):
        raise RecipeError(f"num_conditions must be at most {len(seen)}, as many as there are latents of, or none")
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(seen))
    chosen = {seen[place] for place in order[:num_conditions]}
    return cache.only([place for place in places if cache.conditions[place] in chosen])


def check_channels(transformer: ModelMixin, cache: ArrayCache) -> None:
    """Raise `RecipeError` for latents of another number of channels than the transformer's."""
    expected, channels = transformer.config.out_channels, cache.arrays["clean"].shapes[0][0]
    if channels != expected:
        raise RecipeError(f"the transformer needs latents of {expected} channels, got {channels}; take its own latents")
