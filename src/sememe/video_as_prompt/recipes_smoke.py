"""Twins of the other recipes that take seconds: the same code on 16x16 pixels, 9 frames and a few thousand weights.

Their results are noise. They show that a machine can run the others, and let tests run every step.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sememe.training.config import ScheduleConfig, TrainingConfig
from sememe.training.recipes import AutoencoderRecipe, ClipFormat, LatentsRecipe, LinearNetwork, TextNetwork, WorldData
from sememe.video_as_prompt.recipes_tiny import (
    tiny_autoencoder,
    tiny_backbone,
    tiny_expert,
    tiny_expert_joint,
    tiny_latents,
    tiny_model,
)
from sememe.video_as_prompt.settings import BUILT_IN
from sememe.video_as_prompt.stage_settings import (
    BackboneRecipe,
    ExpertRecipe,
    VideoAsPromptModelRecipe,
    WanNetwork,
)

# All conditions, each in two scenes: the least that can be paired.
_DATA = WorldData(num_clips=308, clips_per_scene=154)
_CLIPS = ClipFormat(num_frames=9, height=16, width=16)


def smoke_autoencoder() -> AutoencoderRecipe:
    """Twin of `tiny-autoencoder`."""
    recipe = tiny_autoencoder()
    return replace(
        recipe,
        name="smoke-autoencoder",
        description="seconds-long twin of tiny-autoencoder, for tests",
        clips=_CLIPS,
        data=_DATA,
        network=LinearNetwork(latent_channels=4, patch_size=4, hidden_channels=8, num_layers=1, num_start_clips=16),
        settings=replace(recipe.settings, batch_size=2),
        training=_shorten(recipe.training),
    )


def smoke_latents() -> LatentsRecipe:
    """Twin of `tiny-latents`."""
    return replace(
        tiny_latents(),
        name="smoke-latents",
        description="seconds-long twin of tiny-latents, for tests",
        clips=_CLIPS,
        data=_DATA,
        autoencoder="runs/smoke-autoencoder",
    )


def smoke_backbone() -> BackboneRecipe:
    """Twin of `tiny-backbone`."""
    recipe = tiny_backbone()
    return replace(
        recipe,
        name="smoke-backbone",
        description="seconds-long twin of tiny-backbone, for tests",
        latents=Path("runs/smoke-latents"),
        network=WanNetwork(
            num_mask_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=24, ffn_dim=32, freq_dim=16
        ),
        text=TextNetwork(vocab_size=200, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
        settings=replace(recipe.settings, batch_size=4),
        training=_shorten(recipe.training),
    )


def smoke_expert() -> ExpertRecipe:
    """Twin of `tiny-expert`."""
    return _shorten_expert(tiny_expert(), "smoke-expert")


def smoke_expert_joint() -> ExpertRecipe:
    """Twin of `tiny-expert-joint`."""
    return _shorten_expert(tiny_expert_joint(), "smoke-expert-joint")


def smoke_model() -> VideoAsPromptModelRecipe:
    """Twin of `tiny-model`."""
    return replace(
        tiny_model(),
        name="smoke-model",
        description="seconds-long twin of tiny-model, for tests",
        autoencoder="runs/smoke-autoencoder",
        backbone="runs/smoke-backbone",
        expert="runs/smoke-expert",
        generation=BUILT_IN.override(height=16, width=16, num_frames=9, num_inference_steps=2),
    )


def _shorten_expert(recipe: ExpertRecipe, name: str) -> ExpertRecipe:
    return replace(
        recipe,
        name=name,
        description=f"seconds-long twin of {recipe.name}, for tests",
        latents=Path("runs/smoke-latents"),
        backbone="runs/smoke-backbone",
        settings=replace(recipe.settings, num_references=2, targets_per_reference=2),
        training=_shorten(recipe.training),
    )


def _shorten(training: TrainingConfig) -> TrainingConfig:
    return replace(
        training,
        num_steps=4,
        schedule=ScheduleConfig(warmup_steps=1, shape="cosine"),
        max_minutes=None,
        time_decay=False,
        compile="none",
        log_every=1,
        precision="fp32",
    )
