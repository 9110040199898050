"""The model `small`: 128x128 pixels, 33 frames, wider and deeper; meant for an accelerator.

In order: `small-autoencoder`, `small-latents`, `small-backbone`, `small-expert`, `small-model`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sememe.training.recipes import AutoencoderRecipe, ClipFormat, LatentsRecipe, LinearNetwork, TextNetwork
from sememe.video_as_prompt.recipes_tiny import tiny_autoencoder, tiny_backbone, tiny_expert, tiny_latents, tiny_model
from sememe.video_as_prompt.settings import BUILT_IN
from sememe.video_as_prompt.stage_settings import (
    BackboneRecipe,
    ExpertRecipe,
    VideoAsPromptModelRecipe,
    WanNetwork,
)

_CLIPS = ClipFormat(num_frames=33, height=128, width=128)


def small_autoencoder() -> AutoencoderRecipe:
    """The autoencoder, with a wider refinement."""
    recipe = tiny_autoencoder()
    return replace(
        recipe,
        name="small-autoencoder",
        description="the video autoencoder of small: principal components, and a refinement of the decoder",
        clips=_CLIPS,
        network=LinearNetwork(hidden_channels=128, num_layers=4),
        training=replace(recipe.training, learning_rate=5e-4, ema_decay=0.999, prefetch_batches=8),
    )


def small_latents() -> LatentsRecipe:
    """40,000 clips of the world as latents."""
    return replace(
        tiny_latents(),
        name="small-latents",
        description="40,000 clips of the world, 128x128 pixels and 33 frames, encoded by the autoencoder of small",
        clips=_CLIPS,
        autoencoder="runs/small-autoencoder",
    )


def small_backbone() -> BackboneRecipe:
    """The image-to-video backbone and its text encoder."""
    recipe = tiny_backbone()
    return replace(
        recipe,
        name="small-backbone",
        description="the image-to-video backbone of small, with its text encoder and tokenizer",
        latents=Path("runs/small-latents"),
        network=WanNetwork(num_layers=12, num_attention_heads=8, ffn_dim=2048),
        text=TextNetwork(d_model=256, d_ff=512, num_heads=8),
        training=replace(recipe.training, learning_rate=5e-4, ema_decay=0.999, prefetch_batches=2),
    )


def small_expert() -> ExpertRecipe:
    """The expert that reads the reference, one-way, in all blocks."""
    recipe = tiny_expert()
    return replace(
        recipe,
        name="small-expert",
        description="the expert of small: one-way, in every block, captions that do not name the condition",
        latents=Path("runs/small-latents"),
        backbone="runs/small-backbone",
        training=replace(recipe.training, learning_rate=5e-4, ema_decay=0.999, prefetch_batches=2),
    )


def small_model() -> VideoAsPromptModelRecipe:
    """The whole model."""
    return replace(
        tiny_model(),
        name="small-model",
        description="128x128 pixels and 33 frames",
        autoencoder="runs/small-autoencoder",
        backbone="runs/small-backbone",
        expert="runs/small-expert",
        generation=BUILT_IN.override(height=128, width=128, num_frames=33),
    )
