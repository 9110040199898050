"""The built-in model `tiny`: 64x64 pixels, 17 frames, trained on two CPU cores in an afternoon.

In order: `tiny-autoencoder`, `tiny-latents`, `tiny-backbone`, `tiny-expert`, `tiny-model`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sememe.data.caption_policy import CaptionPolicy
from sememe.training.config import ScheduleConfig, TrainingConfig
from sememe.training.recipes import AutoencoderRecipe, LatentsRecipe, Regeneration, WorldData
from sememe.video_as_prompt.stage_settings import (
    BackboneRecipe,
    BackboneSettings,
    ExpertRecipe,
    ExpertSettings,
    VideoAsPromptModelRecipe,
    WanNetwork,
)

_UNBOUNDED = 100_000
"""Steps of runs that end by the clock."""


def tiny_autoencoder() -> AutoencoderRecipe:
    """The autoencoder: a code of principal components, and a refinement of what is decoded, which is trained."""
    return AutoencoderRecipe(
        name="tiny-autoencoder",
        description="the video autoencoder of tiny: principal components, and a refinement of the decoder",
        training=TrainingConfig(
            num_steps=_UNBOUNDED,
            learning_rate=2e-3,
            betas=(0.9, 0.98),
            weight_decay=0.0,
            schedule=ScheduleConfig(warmup_steps=30, shape="cosine", final_ratio=0.02),
            ema_decay=0.99,
            max_minutes=30.0,
            time_decay=True,
            prefetch_batches=1,
            save_minutes=3.0,
        ),
    )


def tiny_latents() -> LatentsRecipe:
    """40,000 clips of the world as latents."""
    return LatentsRecipe(
        name="tiny-latents",
        description="40,000 clips of the world, 64x64 pixels and 17 frames, encoded by the autoencoder of tiny",
        autoencoder="runs/tiny-autoencoder",
    )


def tiny_generations() -> LatentsRecipe:
    """Latents with the errors that the model makes, to train its decoder on: `generations` of its autoencoder."""
    return LatentsRecipe(
        name="tiny-generations",
        description="1,000 clips of the world as tiny generates them from their noised latents",
        data=WorldData(num_clips=1000),
        autoencoder="tiny",
        regeneration=Regeneration(model="tiny"),
    )


def tiny_backbone() -> BackboneRecipe:
    """The image-to-video backbone and its text encoder."""
    return BackboneRecipe(
        name="tiny-backbone",
        description="the image-to-video backbone of tiny, with its text encoder and tokenizer",
        latents=Path("runs/tiny-latents"),
        # Tokens of 8x8 pixels: at equal compute, four times as many tokens of half the width learn far better.
        network=WanNetwork(patch_size=1, num_attention_heads=3, ffn_dim=768),
        settings=BackboneSettings(batch_size=48),
        training=_transformer_training(learning_rate=1.5e-3, warmup_steps=80, ema_decay=0.998, max_minutes=60.0),
    )


def tiny_expert() -> ExpertRecipe:
    """The expert that reads the reference, one-way, in all blocks."""
    return ExpertRecipe(
        name="tiny-expert",
        description="the expert of tiny: one-way, in every block, captions that do not name the condition",
        latents=Path("runs/tiny-latents"),
        backbone="runs/tiny-backbone",
        settings=ExpertSettings(num_references=12, targets_per_reference=4),
        training=_transformer_training(learning_rate=1.2e-3, warmup_steps=60, ema_decay=0.997, max_minutes=240.0),
    )


def tiny_model() -> VideoAsPromptModelRecipe:
    """The whole model."""
    return VideoAsPromptModelRecipe(
        name="tiny-model",
        description="64x64 pixels and 17 frames; small enough for two CPU cores",
        autoencoder="runs/tiny-autoencoder",
        backbone="runs/tiny-backbone",
        expert="runs/tiny-expert",
    )


# Ablations of the expert, each a line or two away from it.


def tiny_expert_joint() -> ExpertRecipe:
    """Target and reference read each other, as in the released models (paper section 3.2)."""
    return replace(
        tiny_expert(),
        name="tiny-expert-joint",
        description="ablation: two-way attention, as in the released models",
        attention_mode="joint",
    )


def tiny_expert_leaky_captions() -> ExpertRecipe:
    """Captions name the condition, as in the released training data."""
    recipe = tiny_expert()
    return replace(
        recipe,
        name="tiny-expert-leaky-captions",
        description="ablation: captions name the condition nearly always, as the official recipe has it",
        settings=replace(
            recipe.settings,
            captions=CaptionPolicy(drop_target_caption=0.1, drop_reference_caption=0.1, full_share=1.0),
        ),
    )


def tiny_expert_no_shared_scenes() -> ExpertRecipe:
    """No batch shows one scene under different conditions on purpose."""
    recipe = tiny_expert()
    return replace(
        recipe,
        name="tiny-expert-no-shared-scenes",
        description="ablation: batches do not show the same scene under different conditions on purpose",
        settings=replace(recipe.settings, same_scene_share=0.0),
    )


def tiny_expert_half_blocks() -> ExpertRecipe:
    """An expert in every second block."""
    return replace(
        tiny_expert(),
        name="tiny-expert-half-blocks",
        description="ablation: an expert in every second block",
        expert_blocks=(0, 2, 4, 6),
    )


def tiny_expert_24_conditions() -> ExpertRecipe:
    """A fifth of the seen conditions."""
    return replace(
        tiny_expert(),
        name="tiny-expert-24-conditions",
        description="ablation: 24 of the seen conditions only",
        num_conditions=24,
    )


def tiny_expert_single_targets() -> ExpertRecipe:
    """Every target brings its own reference; as many pairs a batch."""
    recipe = tiny_expert()
    return replace(
        recipe,
        name="tiny-expert-single-targets",
        description="ablation: every target has a reference of its own, with as many pairs a batch",
        settings=replace(recipe.settings, num_references=48, targets_per_reference=1),
    )


def tiny_released_expert() -> ExpertRecipe:
    """An expert trained as the released ones were, to measure there what can be done about an ignored reference.

    Two-way, captions that name the condition in 98 of 100 cases, and no batch that shows one scene under different
    conditions, as the official recipes have it.
    """
    recipe = tiny_expert()
    return replace(
        recipe,
        name="tiny-released-expert",
        description="an expert of tiny that learns as the released ones did: two-way, captions that name the condition",
        attention_mode="joint",
        reference_timestep=1.0,
        settings=replace(
            recipe.settings,
            same_scene_share=0.0,
            captions=CaptionPolicy(drop_target_caption=0.02, drop_reference_caption=0.02, full_share=1.0),
        ),
    )


def _transformer_training(
    *, learning_rate: float, warmup_steps: int, ema_decay: float, max_minutes: float
) -> TrainingConfig:
    return TrainingConfig(
        num_steps=_UNBOUNDED,
        learning_rate=learning_rate,
        optimizer="muon",
        betas=(0.9, 0.98),
        weight_decay=0.01,
        schedule=ScheduleConfig(warmup_steps=warmup_steps, shape="cosine", final_ratio=0.03),
        ema_decay=ema_decay,
        max_minutes=max_minutes,
        time_decay=True,
        prefetch_batches=1,
        save_minutes=6.0,
        compile="blocks",
    )
