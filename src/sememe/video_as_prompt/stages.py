"""From recipes to stages: the networks and data of the backbone's and the expert's training, and the whole model."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from numpy.typing import NDArray

from sememe.checkpoints.components import load_component
from sememe.checkpoints.zoo import find_part
from sememe.data.array_cache import ArrayCache
from sememe.diffusion.objectives import FLOW, NoisePath, PredictionType
from sememe.errors import RecipeError
from sememe.training.array_encoders import describe_text
from sememe.training.distribution import choose_device
from sememe.training.networks import make_scheduler, make_text_encoder, train_tokenizer
from sememe.training.preparation import Announce
from sememe.training.recipes import TrainingRecipe
from sememe.training.text_source import CachedText, EncodedText, TextSource
from sememe.video_as_prompt.backbone_family import BackboneFamily
from sememe.video_as_prompt.expert_model import ExpertModel
from sememe.video_as_prompt.families import TransformerAlone, choose_family
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from sememe.video_as_prompt.stage_backbone import BackboneStage
from sememe.video_as_prompt.stage_expert import ExpertStage
from sememe.video_as_prompt.stage_settings import BackboneRecipe, ExpertRecipe, VideoAsPromptModelRecipe, WanNetwork


class BackbonePreparation:
    """Latents for the training of a backbone and its text encoder; see `training.preparation.Preparation`.

    Raises:
        InputError: The latents are not there, or not finished.
    """

    def __init__(self, recipe: BackboneRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        assert not parts, parts
        self._recipe, self._announce = recipe, announce
        announce("reading latents")
        self._cache = ArrayCache.open(recipe.latents, choose_device(recipe.training.device))

    @property
    def inputs(self) -> Mapping[str, str]:
        return self._cache.describe("first_frame")

    def begin(self, folder: Path) -> None:
        recipe, cache = self._recipe, self._cache
        self._announce("fitting the tokenizer")
        tokenizer = train_tokenizer(cache.full_captions, recipe.text)
        torch.manual_seed(recipe.training.seed)
        text_encoder = make_text_encoder(recipe.text, len(tokenizer))
        transformer = make_transformer(recipe.network, cache.arrays["clean"].shape[0], recipe.text.d_model)
        tokenizer.save_pretrained(folder / "tokenizer")
        text_encoder.save_pretrained(folder / "text_encoder")
        transformer.save_pretrained(folder / "transformer")

    def build(self, start: Path) -> BackboneStage:
        recipe, cache = self._recipe, self._cache
        transformer = load_component("transformer", start / "transformer")
        if not isinstance(transformer, WanTransformer3DModel):
            raise RecipeError(
                f"only Wan backbones are trained as a whole, got {type(transformer).__name__}; train an expert"
            )
        _check_channels(transformer, cache)
        _choose_attention(transformer, recipe)
        text_encoder, tokenizer = (
            load_component("text_encoder", start / "text_encoder"),
            load_component("tokenizer", start / "tokenizer"),
        )
        unnamed = find_unseen(cache, recipe.unseen)
        return BackboneStage(transformer, text_encoder, tokenizer, cache, recipe.settings, unnamed)


class ExpertPreparation:
    """Latents and the frozen backbone for the training of an expert; see `training.preparation.Preparation`.

    Raises:
        InputError: The latents are not there, or not finished.
        ModelError: The backbone is not whole.
        RecipeError: The latents are of another kind than the backbone's.
    """

    def __init__(self, recipe: ExpertRecipe, parts: Mapping[str, Path], announce: Announce) -> None:
        self._recipe, self._parts = recipe, parts
        announce("reading latents")
        self._cache = ArrayCache.open(recipe.latents, choose_device(recipe.training.device))
        announce("loading the backbone")
        backbone = load_component("transformer", parts["transformer"])
        self._transformer = _put_expert(backbone, recipe, self.inputs["first_frame_fill"])

    @property
    def inputs(self) -> Mapping[str, str]:
        return self._cache.describe("first_frame")

    def begin(self, folder: Path) -> None:
        self._transformer.save_expert(folder / "expert")

    def build(self, start: Path) -> ExpertStage:
        recipe, parts, transformer = self._recipe, self._parts, self._transformer
        _check_channels(transformer, self._cache)
        transformer.load_expert(start / "expert")
        _choose_attention(transformer, recipe)
        family = choose_family(TransformerAlone(transformer))
        path = FLOW if family.prediction == "flow" else _read_path(recipe.backbone, family.prediction)
        text = _find_text(parts, family, self._cache)
        latents = select_conditions(self._cache, find_unseen(self._cache, recipe.unseen), recipe.num_conditions)
        return ExpertStage(transformer, text, latents, recipe.settings, path)


def build_pipeline(recipe: VideoAsPromptModelRecipe, parts: Mapping[str, Path]) -> VideoAsPromptPipeline:
    """Return the pipeline of a model, in float32.

    Raises:
        ModelError: A part is not whole, or does not fit the others.
    """
    return VideoAsPromptPipeline(
        tokenizer=load_component("tokenizer", parts["tokenizer"]),
        text_encoder=load_component("text_encoder", parts["text_encoder"]),
        vae=load_component("vae", parts["vae"]),
        transformer=WanVideoAsPromptTransformer.from_folders(parts["transformer"], parts["expert"], torch.float32),
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
    """Which clips are kept for evaluation, (clip,): those of the named conditions, or of other splits than "train"."""
    if names is None:
        return np.array([split != "train" for split in cache.splits])
    return np.array([condition in names for condition in cache.conditions])


def select_conditions(cache: ArrayCache, unseen: NDArray[np.bool_], num_conditions: int | None) -> ArrayCache:
    """The seen clips, or those of some of their conditions: a smaller number takes a part of a larger one's.

    Raises:
        RecipeError: There are fewer conditions than that.
    """
    places = np.flatnonzero(~unseen).tolist()
    seen = sorted({cache.conditions[place] for place in places})
    if num_conditions is None:
        return cache.only(places)
    if num_conditions > len(seen):
        raise RecipeError(f"num_conditions must be at most {len(seen)}, as many as there are latents of, or none")
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(seen))
    chosen = {seen[place] for place in order[:num_conditions]}
    return cache.only([place for place in places if cache.conditions[place] in chosen])


def _find_text(parts: Mapping[str, Path], family: BackboneFamily, cache: ArrayCache) -> TextSource:
    """The cache's text embeddings where it has them, else the backbone's text encoder."""
    length, reads_padding = family.text_length, family.reads_padding
    if "text" not in cache.arrays:
        encoder = load_component("text_encoder", parts["text_encoder"]).requires_grad_(False)
        return EncodedText(
            load_component("tokenizer", parts["tokenizer"]), encoder, length, reads_padding=reads_padding
        )
    found = cache.arrays["text"].made_by
    expected = describe_text(parts["text_encoder"], parts["tokenizer"], length, reads_padding=reads_padding)
    if found != expected:
        raise RecipeError(
            f"the text embeddings were made with {found}, but the backbone needs {expected}; precompute them with "
            "its text_encoder, text_length and reads_padding"
        )
    return CachedText(cache)


def _put_expert(backbone: Any, recipe: ExpertRecipe, fill: str) -> ExpertModel:
    kinds = (WanVideoAsPromptTransformer, CogVideoXVideoAsPromptTransformer)
    kind = next(each for each in kinds if isinstance(backbone, each.backbone_class))
    own = {
        "expert_blocks": recipe.expert_blocks,
        "attention_mode": recipe.attention_mode,
        "reference_timestep": recipe.reference_timestep,
        "first_frame_fill": fill,
    }
    if ("first_frame_fill" in kind.own_settings) == (fill == "zeros"):
        raise RecipeError(
            f"latents with first_frame_fill={fill} do not fit a {type(backbone).__name__}; precompute them with "
            "zeros for CogVideoX, grey or repeat for Wan"
        )
    return kind.from_backbone(backbone, **{name: own[name] for name in kind.own_settings})


def _read_path(backbone: str, prediction: PredictionType) -> NoisePath:
    path = NoisePath.of_scheduler(load_component("scheduler", find_part(backbone, "scheduler")))
    if path.prediction != prediction:
        raise RecipeError(f"the backbone {backbone} predicts {prediction}, but its scheduler is for {path.prediction}")
    return path


def _choose_attention(transformer: Any, recipe: TrainingRecipe) -> None:
    if choose_device(recipe.training.device).type == "cpu":
        # On a CPU the backward of torch's fused attention is slow in bfloat16.
        transformer.set_attention_backend("_native_math")


def _check_channels(transformer: Any, cache: ArrayCache) -> None:
    expected, channels = transformer.config.out_channels, cache.arrays["clean"].shape[0]
    if channels != expected:
        raise RecipeError(f"the transformer needs latents of {expected} channels, got {channels}; take its own latents")
