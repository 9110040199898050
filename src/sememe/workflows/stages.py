"""Recipes to stages: networks and data put together, ready for the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sememe.checkpoints.component_files import load_tokenizer
from sememe.checkpoints.components import load_autoencoder, load_backbone, load_text_encoder
from sememe.checkpoints.fingerprint import fingerprint_model
from sememe.checkpoints.parts import find_part
from sememe.checkpoints.zoo import resolve_model
from sememe.data.latents import LatentCache, LatentSubset
from sememe.errors import ModelError, RecipeError
from sememe.training.distribution import choose_device
from sememe.training.stage import Stage
from sememe.training.stage_autoencoder import AutoencoderStage, balance_bands
from sememe.video_as_prompt.recipe_records import AutoencoderRecipe, BackboneRecipe, ExpertRecipe, TrainingRecipe
from sememe.video_as_prompt.stage_backbone import BackboneStage
from sememe.video_as_prompt.stage_expert import ExpertStage
from sememe.workflows import networks
from sememe.workflows.beginnings import InitialWeights, prepare_start
from sememe.workflows.clips import open_clips
from sememe.workflows.events import Progress, ProgressHandler
from sememe.workflows.precompute import open_latents
from sememe.workflows.run_record import read_run

# Clips that the sizes of wavelet bands are measured on.
_NUM_BALANCE_CLIPS = 96


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
    size, seed = max(recipe.data.height, recipe.data.width), recipe.training.seed

    def make(folder: Path) -> None:
        on_progress(Progress("fitting principal components"))
        networks.start_autoencoder(recipe.network, clips, size, seed).save_pretrained(folder / "vae")

    start = prepare_start(recipe, output_dir, initial, make)
    autoencoder = load_autoencoder(start / "vae")
    stage = AutoencoderStage(autoencoder, clips, recipe.settings)
    places = np.linspace(0, len(clips) - 1, min(_NUM_BALANCE_CLIPS, len(clips))).astype(int).tolist()
    balance_bands(autoencoder, networks.read_video(clips, places))
    return PreparedStage(stage, {"clips": clips.version})


def _prepare_backbone(
    recipe: BackboneRecipe, output_dir: Path, initial: InitialWeights | None, on_progress: ProgressHandler
) -> PreparedStage:
    cache = _read_latents(recipe, on_progress)
    settings, seed = recipe.settings, recipe.training.seed

    def make(folder: Path) -> None:
        on_progress(Progress("fitting the tokenizer"))
        tokenizer = networks.train_tokenizer(cache.full_captions, recipe.text)
        torch.manual_seed(seed)
        text_encoder = networks.make_text_encoder(recipe.text, len(tokenizer))
        transformer = networks.make_transformer(
            recipe.network, cache.clean.shape[1], settings.num_mask_channels, recipe.text.d_model
        )
        tokenizer.save_pretrained(folder / "tokenizer")
        text_encoder.save_pretrained(folder / "text_encoder")
        transformer.save_pretrained(folder / "transformer")

    start = prepare_start(recipe, output_dir, initial, make)
    transformer = load_backbone(start / "transformer")
    _check_channels(transformer, cache, settings.num_mask_channels)
    _choose_attention(transformer, recipe)
    stage = BackboneStage(
        transformer,
        load_text_encoder(start / "text_encoder"),
        load_tokenizer(start / "tokenizer"),
        cache,
        settings,
        unseen_conditions(),
    )
    return PreparedStage(stage, _describe_latents(cache))


def _prepare_expert(
    recipe: ExpertRecipe, output_dir: Path, initial: InitialWeights | None, on_progress: ProgressHandler
) -> PreparedStage:
    from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer

    cache = _read_latents(recipe, on_progress)
    on_progress(Progress("loading the backbone"))
    parts = {part: find_part(recipe.backbone, part) for part in ("transformer", "text_encoder", "tokenizer")}
    _check_same_encoder(recipe.backbone, cache)
    backbone = load_backbone(parts["transformer"])
    _check_channels(backbone, cache, recipe.settings.num_mask_channels)
    transformer = WanVideoAsPromptTransformer.from_backbone(
        backbone,
        recipe.expert_blocks,
        recipe.attention_mode,
        recipe.reference_timestep,
        cache.origin.first_frame_fill,
    )
    start = prepare_start(recipe, output_dir, initial, lambda folder: transformer.save_expert(folder / "expert"))
    transformer.load_expert(start / "expert")
    _choose_attention(transformer, recipe)
    stage = ExpertStage(
        transformer,
        load_text_encoder(parts["text_encoder"]),
        load_tokenizer(parts["tokenizer"]),
        select_conditions(cache, recipe.num_conditions),
        recipe.settings,
    )
    backbone_hash = " ".join(fingerprint_model(folder).sha256[:16] for folder in parts.values())
    return PreparedStage(stage, _describe_latents(cache) | {"backbone": backbone_hash})


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


def _check_channels(transformer: Any, cache: LatentCache, num_mask_channels: int) -> None:
    channels = 2 * cache.clean.shape[1] + num_mask_channels
    if transformer.config.in_channels != channels:
        raise RecipeError(
            f"latents of {cache.clean.shape[1]} channels and {num_mask_channels} mask channels need a transformer of "
            f"{channels} input channels, got one of {transformer.config.in_channels}; take the latents that it was "
            "trained on"
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
    return networks.fingerprint_encoder(load_autoencoder(part))
