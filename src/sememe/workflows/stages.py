"""Recipes to stages: networks and data put together, ready for the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel

from sememe.checkpoints.component_files import load_tokenizer
from sememe.checkpoints.components import (
    load_autoencoder,
    load_backbone,
    load_scheduler,
    load_text_encoder,
)
from sememe.checkpoints.fingerprint import fingerprint_encoder, fingerprint_model
from sememe.checkpoints.parts import find_part
from sememe.checkpoints.zoo import resolve_model
from sememe.data.latents import LatentCache, LatentSubset
from sememe.diffusion.objectives import FLOW, NoisePath, PredictionType
from sememe.errors import ModelError, RecipeError
from sememe.training import networks
from sememe.training.clips import ClipCollection, open_clips
from sememe.training.distribution import choose_device
from sememe.training.recipes import AutoencoderRecipe, TrainingRecipe
from sememe.training.run_record import read_run
from sememe.training.stage import Stage
from sememe.training.stage_autoencoder import AutoencoderStage
from sememe.video_as_prompt.expert_model import ExpertModel
from sememe.video_as_prompt.families import TransformerAlone, choose_family
from sememe.video_as_prompt.latent_batches import EncodedText
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.stage_backbone import BackboneStage
from sememe.video_as_prompt.stage_expert import ExpertStage
from sememe.video_as_prompt.stage_settings import BackboneRecipe, ExpertRecipe
from sememe.video_as_prompt.stages import make_transformer
from sememe.workflows.beginnings import InitialWeights, prepare_start
from sememe.workflows.events import Progress, ProgressHandler
from sememe.workflows.precompute import open_latents


@dataclass(frozen=True)
class PreparedStage:
    """A stage, and what identifies the things that it was made from."""

    stage: Stage
    inputs: Mapping[str, str] = field(default_factory=dict)


def prepare_stage(
    recipe: TrainingRecipe, output_dir: Path, initial: InitialWeights | None, on_progress: ProgressHandler
) -> PreparedStage:
    """Reads what the recipe needs and builds its stage; the first time, the run's `start/` folder too.

    Raises:
        ModelError: a model that it needs is not there, or does not fit.
        InputError: clips or latents cannot be read.
        RecipeError: settings do not fit together, or to the latents.
    """
    match recipe:
        case AutoencoderRecipe():
            return _prepare_autoencoder(recipe, output_dir, initial, on_progress)
        case BackboneRecipe():
            return _prepare_backbone(recipe, output_dir, initial, on_progress)
        case ExpertRecipe():
            return _prepare_expert(recipe, output_dir, initial, on_progress)


def _prepare_autoencoder(
    recipe: AutoencoderRecipe, output_dir: Path, initial: InitialWeights | None, on_progress: ProgressHandler
) -> PreparedStage:
    clips = open_clips(recipe.data, recipe.dataset)
    generations = None if recipe.generations is None else open_latents(recipe.generations)

    def make(folder: Path) -> None:
        on_progress(Progress("fitting principal components"))
        networks.start_autoencoder(recipe.network, clips, recipe.training.seed).save_pretrained(folder / "vae")

    start = prepare_start(recipe, output_dir, initial, make)
    autoencoder = load_autoencoder(start / "vae")
    if generations is not None:
        _check_generations(generations, clips, fingerprint_encoder(autoencoder))
    stage = AutoencoderStage(autoencoder, clips, recipe.settings, generations)
    return PreparedStage(stage, {"clips": clips.version})


def _prepare_backbone(
    recipe: BackboneRecipe, output_dir: Path, initial: InitialWeights | None, on_progress: ProgressHandler
) -> PreparedStage:
    cache, seed = _read_latents(recipe, on_progress), recipe.training.seed

    def make(folder: Path) -> None:
        on_progress(Progress("fitting the tokenizer"))
        tokenizer = networks.train_tokenizer(cache.full_captions, recipe.text)
        torch.manual_seed(seed)
        text_encoder = networks.make_text_encoder(recipe.text, len(tokenizer))
        transformer = make_transformer(recipe.network, cache.clean.shape[1], recipe.text.d_model)
        tokenizer.save_pretrained(folder / "tokenizer")
        text_encoder.save_pretrained(folder / "text_encoder")
        transformer.save_pretrained(folder / "transformer")

    start = prepare_start(recipe, output_dir, initial, make)
    transformer = load_backbone(start / "transformer")
    if not isinstance(transformer, WanTransformer3DModel):
        raise RecipeError(
            f"only Wan backbones are trained as a whole, got {type(transformer).__name__}; train an expert"
        )
    _check_channels(transformer, cache)
    _choose_attention(transformer, recipe)
    stage = BackboneStage(
        transformer,
        load_text_encoder(start / "text_encoder"),
        load_tokenizer(start / "tokenizer"),
        cache,
        recipe.settings,
        unseen_conditions(),
    )
    return PreparedStage(stage, _describe_latents(cache))


def _prepare_expert(
    recipe: ExpertRecipe, output_dir: Path, initial: InitialWeights | None, on_progress: ProgressHandler
) -> PreparedStage:
    cache = _read_latents(recipe, on_progress)
    on_progress(Progress("loading the backbone"))
    parts = {part: find_part(recipe.backbone, part) for part in ("transformer", "text_encoder", "tokenizer")}
    _check_same_encoder(recipe.backbone, cache)
    backbone = load_backbone(parts["transformer"])
    _check_channels(backbone, cache)
    transformer = _put_expert(backbone, recipe, cache.origin.first_frame_fill)
    start = prepare_start(recipe, output_dir, initial, lambda folder: transformer.save_expert(folder / "expert"))
    transformer.load_expert(start / "expert")
    _choose_attention(transformer, recipe)
    family = choose_family(TransformerAlone(transformer))
    path = FLOW if family.prediction == "flow" else _read_path(recipe.backbone, family.prediction)
    text_encoder = load_text_encoder(parts["text_encoder"]).requires_grad_(False)
    text = EncodedText(
        load_tokenizer(parts["tokenizer"]), text_encoder, family.text_length, reads_padding=family.reads_padding
    )
    stage = ExpertStage(transformer, text, select_conditions(cache, recipe.num_conditions), recipe.settings, path)
    backbone_hash = " ".join(fingerprint_model(folder).sha256[:16] for folder in parts.values())
    return PreparedStage(stage, _describe_latents(cache) | {"backbone": backbone_hash})


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
    path = NoisePath.of_scheduler(load_scheduler(find_part(backbone, "scheduler")))
    if path.prediction != prediction:
        raise RecipeError(f"the backbone {backbone} predicts {prediction}, but its scheduler is for {path.prediction}")
    return path


def unseen_conditions() -> frozenset[str]:
    """The world's conditions that an expert never meets, and a backbone never by name."""
    from sememe.world import conditions

    return frozenset(conditions(split="unseen"))


def select_conditions(cache: LatentCache, num_conditions: int | None) -> LatentSubset:
    """The clips of the seen conditions, or of some of them: a smaller number takes a part of a larger one's.

    Raises:
        RecipeError: there are fewer.
    """
    seen = sorted(set(cache.conditions) - unseen_conditions())
    if num_conditions is None:
        return cache.only(frozenset(seen))
    if num_conditions > len(seen):
        raise RecipeError(f"num_conditions must be at most {len(seen)}, as many as there are latents of, or none")
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(seen))
    return cache.only(frozenset(seen[place] for place in order[:num_conditions]))


def _read_latents(recipe: BackboneRecipe | ExpertRecipe, on_progress: ProgressHandler) -> LatentCache:
    on_progress(Progress("reading latents"))
    cache = open_latents(recipe.latents)
    # On a GPU they stay there: a batch then costs no transfer.
    return cache.to(choose_device(recipe.training.device)) if _is_cuda(recipe) else cache


def _describe_latents(cache: LatentCache) -> dict[str, str]:
    origin = cache.origin
    return {
        "clips": origin.dataset,
        "autoencoder": origin.autoencoder,
        "first_frame_fill": origin.first_frame_fill,
    }


def _is_cuda(recipe: TrainingRecipe) -> bool:
    return choose_device(recipe.training.device).type == "cuda"


def _choose_attention(transformer: Any, recipe: TrainingRecipe) -> None:
    if choose_device(recipe.training.device).type == "cpu":
        # On a CPU the backward of torch's fused attention is slow in bfloat16.
        transformer.set_attention_backend("_native_math")


def _check_channels(transformer: Any, cache: LatentCache) -> None:
    expected, channels = transformer.config.out_channels, cache.clean.shape[1]
    if channels != expected:
        raise RecipeError(f"the transformer needs latents of {expected} channels, got {channels}; take its own latents")


def _check_generations(generations: LatentCache, clips: ClipCollection, encoder: str) -> None:
    origin = generations.origin
    if not origin.dataset.startswith(clips.version) or origin.autoencoder != encoder or len(generations) > len(clips):
        raise RecipeError(
            f"expected generations of the clips of {clips.version} and autoencoder {encoder[:16]}, got those of "
            f"{origin.dataset} and {origin.autoencoder[:16]}; start from the autoencoder of the model that made them "
            "(--init-from)"
        )


def _check_same_encoder(backbone: str, cache: LatentCache) -> None:
    record, fill = read_run(resolve_model(backbone)), cache.origin.first_frame_fill
    if record is not None and record.inputs.get("first_frame_fill", fill) != fill:
        raise RecipeError(
            f"the backbone {backbone} was trained with first_frame_fill={record.inputs['first_frame_fill']}, but the "
            f"latents are made with {fill}; precompute latents with the same"
        )
    known = find_encoder(backbone)
    if known is not None and known != cache.origin.autoencoder:
        raise RecipeError(
            f"the backbone {backbone} was trained on latents of autoencoder {known[:16]}, but those in the cache are "
            f"of {cache.origin.autoencoder[:16]}; precompute latents with its autoencoder"
        )


def find_encoder(source: str) -> str | None:
    """The fingerprint of the encoder that a run or a model belongs to; None where it cannot be told."""
    folder = resolve_model(source)
    record = read_run(folder)
    if record is not None:
        return record.inputs.get("autoencoder")
    try:
        part = find_part(folder, "vae")
    except ModelError:
        return None
    return fingerprint_encoder(load_autoencoder(part))
