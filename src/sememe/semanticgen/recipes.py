"""SemanticGen's recipes: the built-in model `tiny`, its baselines, models of the size of Wan2.1, and twins of `tiny`
that take seconds.

In order: `tiny-encoder-frames`, `tiny-semantic-encoder`, `tiny-semantic-frames`, `tiny-semantic-latents`,
`tiny-renderer`, `tiny-planner`, `tiny-semanticgen`; the reader of the evaluation, `tiny-reader`, learns from
`tiny-semantic-frames`. Imports no torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sememe.data.caption_policy import CaptionPolicy
from sememe.semanticgen.settings import BUILT_IN, Settings
from sememe.semanticgen.stage_settings import (
    CompressorNetwork,
    EncoderRecipe,
    EncoderSettings,
    PlannerNetwork,
    PlannerRecipe,
    PlannerSettings,
    ReaderNetwork,
    ReaderRecipe,
    ReaderSettings,
    RendererRecipe,
    RendererSettings,
    SemanticFramesRecipe,
    SemanticGenModelRecipe,
    SemanticLatentsRecipe,
    TowerNetwork,
)
from sememe.training.config import ScheduleConfig, TrainingConfig, make_twin, train_transformer
from sememe.training.recipes import ClipFormat, WorldData

_SCRIPTS = ClipFormat(num_frames=33)  # 4 seconds after the first frame
_SCRIPT_DATA = WorldData(num_clips=20_000, clips_per_scene=1, kind="scripts")
_SMOKE_CLIPS = ClipFormat(num_frames=17, height=16, width=16)


def tiny_encoder_frames() -> SemanticFramesRecipe:
    """Scripts for the encoder, which sees half a second at a time: many short ones show it more subjects."""
    return SemanticFramesRecipe(
        name="tiny-encoder-frames",
        description="40,000 short scripts of the world, 64x64 pixels and 10 frames, with what is known of them",
        clips=replace(_SCRIPTS, num_frames=10),
        data=replace(_SCRIPT_DATA, num_clips=40_000),
    )


def tiny_semantic_frames() -> SemanticFramesRecipe:
    return SemanticFramesRecipe(
        name="tiny-semantic-frames",
        description="20,000 scripts of the world, 64x64 pixels and 33 frames, with what is known of them",
        clips=_SCRIPTS,
        data=_SCRIPT_DATA,
    )


def tiny_semantic_encoder() -> EncoderRecipe:
    return EncoderRecipe(
        name="tiny-semantic-encoder",
        description="the semantic encoder of tiny, a tower of Qwen2.5-VL at small size, and its compressor",
        frames=Path("runs/tiny-encoder-frames"),
        training=train_transformer(learning_rate=1e-3, warmup_steps=50, ema_decay=0.995, max_minutes=30.0),
    )


def tiny_semantic_latents() -> SemanticLatentsRecipe:
    return SemanticLatentsRecipe(
        name="tiny-semantic-latents",
        description="the scripts of tiny-semantic-frames as latents and semantic features",
        clips=_SCRIPTS,
        data=_SCRIPT_DATA,
        dataset=Path("runs/tiny-semantic-frames"),
        autoencoder="video-as-prompt/tiny",
        semantic_encoder="runs/tiny-semantic-encoder",
        semantic_fps=4.0,
    )


def tiny_renderer() -> RendererRecipe:
    """The renderer, from the backbone of Video-As-Prompt; it reads plans of the encoder's compressor."""
    return RendererRecipe(
        name="tiny-renderer",
        description="the renderer of tiny and its text encoder, from the backbone of Video-As-Prompt",
        latents=Path("runs/tiny-semantic-latents"),
        backbone="video-as-prompt/tiny",
        encoder="runs/tiny-semantic-encoder",
        # Texts are left out often, for a clip without one asks most for its plan.
        settings=RendererSettings(
            batch_size=8,
            captions=CaptionPolicy(drop_target_caption=0.4, drop_reference_caption=0.0, full_share=0.9),
            drop_plan=0.05,
            image_share=0.1,
            plan_noise_tau=0.3,
        ),
        training=train_transformer(learning_rate=5e-4, warmup_steps=10, ema_decay=0.99, max_minutes=120.0),
    )


def tiny_renderer_ct() -> RendererRecipe:
    recipe = tiny_renderer()
    return replace(
        recipe,
        name="tiny-renderer-ct",
        description="baseline: continued training without a plan, full attention (Base-CT)",
        settings=replace(recipe.settings, drop_plan=1.0, window_seconds=None),
    )


def tiny_renderer_swin_ct() -> RendererRecipe:
    recipe = tiny_renderer()
    return replace(
        recipe,
        name="tiny-renderer-swin-ct",
        description="baseline: continued training without a plan, in windows (Base-Swin-CT)",
        settings=replace(recipe.settings, drop_plan=1.0),
    )


def tiny_planner() -> PlannerRecipe:
    return PlannerRecipe(
        name="tiny-planner",
        description="the planner of tiny: a text to compressed semantic features",
        latents=Path("runs/tiny-semantic-latents"),
        renderer="runs/tiny-renderer",
        settings=PlannerSettings(batch_size=32),
        training=train_transformer(learning_rate=1.5e-3, warmup_steps=20, ema_decay=0.99, max_minutes=60.0),
    )


def tiny_semanticgen() -> SemanticGenModelRecipe:
    return SemanticGenModelRecipe(
        name="tiny-semanticgen",
        description="64x64 pixels, 4 seconds and more; small enough for two CPU cores",
        autoencoder="video-as-prompt/tiny",
        encoder="runs/tiny-semantic-encoder",
        renderer="runs/tiny-renderer",
        planner="runs/tiny-planner",
    )


def tiny_reader() -> ReaderRecipe:
    return ReaderRecipe(
        name="tiny-reader",
        description="the reader of the evaluation: who, where, in which colour, and what happens when",
        frames=Path("runs/tiny-semantic-frames"),
        training=train_transformer(learning_rate=2e-3, warmup_steps=50, ema_decay=0.995, max_minutes=20.0),
    )


# The same with plans of compressed latents of the autoencoder in place of semantic features (paper section 4.4).


def tiny_vae_plan_latents() -> SemanticLatentsRecipe:
    return replace(
        tiny_semantic_latents(),
        name="tiny-vae-plan-latents",
        description="baseline: latents of single frames in place of semantic features",
        semantic_encoder="video-as-prompt/tiny/vae",
    )


def tiny_vae_plan_renderer() -> RendererRecipe:
    return replace(
        tiny_renderer(),
        name="tiny-vae-plan-renderer",
        description="baseline: a renderer of plans of compressed latents, and its compressor",
        latents=Path("runs/tiny-vae-plan-latents"),
        encoder=None,
    )


def tiny_vae_plan_planner() -> PlannerRecipe:
    return replace(
        tiny_planner(),
        name="tiny-vae-plan-planner",
        description="baseline: a planner of compressed latents",
        latents=Path("runs/tiny-vae-plan-latents"),
        renderer="runs/tiny-vae-plan-renderer",
    )


def tiny_vae_plan() -> SemanticGenModelRecipe:
    return replace(
        tiny_semanticgen(),
        name="tiny-vae-plan",
        description="baseline of tiny-semanticgen whose plans are compressed latents",
        encoder="video-as-prompt/tiny/vae",
        renderer="runs/tiny-vae-plan-renderer",
        planner="runs/tiny-vae-plan-planner",
    )


# At the scale of Wan2.1; folders of released models in the layout of diffusers and transformers.


def wan_1_3b_semantic_latents() -> SemanticLatentsRecipe:
    """Clips at the backbone's own size; `--set dataset=FOLDER` takes those of a dataset."""
    return SemanticLatentsRecipe(
        name="wan-1-3b-semantic-latents",
        description="clips of 832x480 pixels and 81 frames: latents of Wan2.1, features of Qwen2.5-VL-3B, texts",
        clips=ClipFormat(num_frames=81, height=480, width=832, fps=16.0, sampling="fps"),
        data=WorldData(num_clips=4_000, clips_per_scene=1, kind="scripts"),
        autoencoder="Wan2.1-T2V-1.3B-Diffusers",
        semantic_encoder="Qwen2.5-VL-3B-Instruct",
        text_encoder="Wan2.1-T2V-1.3B-Diffusers",
        batch_size=1,
        dtype="bfloat16",
    )


def wan_1_3b_renderer() -> RendererRecipe:
    """Renderer and compressor; the text encoder stays frozen, and its embeddings are read from the cache."""
    return RendererRecipe(
        name="wan-1-3b-renderer",
        description="the renderer from Wan2.1-T2V-1.3B, and its compressor",
        latents=Path("runs/wan-1-3b-semantic-latents"),
        backbone="Wan2.1-T2V-1.3B-Diffusers",
        temporal_ratio=4,
        fps=16.0,
        settings=RendererSettings(batch_size=1, image_share=0.0, window_seconds=5.0),
        training=replace(_train_at_scale(10_000), checkpoints_activations=True),
    )


def wan_1_3b_planner() -> PlannerRecipe:
    """A planner of the backbone's size, with random weights; the paper's begins with the backbone's."""
    return PlannerRecipe(
        name="wan-1-3b-planner",
        description="the planner at the size of Wan2.1-T2V-1.3B",
        latents=Path("runs/wan-1-3b-semantic-latents"),
        renderer="runs/wan-1-3b-renderer",
        network=PlannerNetwork(num_layers=30, num_attention_heads=12, attention_head_dim=128, ffn_dim=8960),
        settings=PlannerSettings(batch_size=8),
        training=_train_at_scale(50_000),
    )


def wan_1_3b_semanticgen() -> SemanticGenModelRecipe:
    return SemanticGenModelRecipe(
        name="wan-1-3b-semanticgen",
        description="832x480 pixels, 5 seconds and more, at the size of Wan2.1-T2V-1.3B",
        autoencoder="Wan2.1-T2V-1.3B-Diffusers",
        encoder="Qwen2.5-VL-3B-Instruct",
        renderer="runs/wan-1-3b-renderer",
        planner="runs/wan-1-3b-planner",
        generation=Settings(),
    )


def wan_14b_semantic_latents() -> SemanticLatentsRecipe:
    """With the features of the paper's main runs."""
    return replace(
        wan_1_3b_semantic_latents(),
        name="wan-14b-semantic-latents",
        description="clips of 832x480 pixels and 81 frames: latents of Wan2.1, features of Qwen2.5-VL-72B, texts",
        autoencoder="Wan2.1-T2V-14B-Diffusers",
        semantic_encoder="Qwen2.5-VL-72B-Instruct",
        text_encoder="Wan2.1-T2V-14B-Diffusers",
    )


def wan_14b_renderer() -> RendererRecipe:
    return replace(
        wan_1_3b_renderer(),
        name="wan-14b-renderer",
        description="the renderer from Wan2.1-T2V-14B, and its compressor",
        latents=Path("runs/wan-14b-semantic-latents"),
        backbone="Wan2.1-T2V-14B-Diffusers",
    )


def wan_14b_planner() -> PlannerRecipe:
    return replace(
        wan_1_3b_planner(),
        name="wan-14b-planner",
        description="the planner at the size of Wan2.1-T2V-14B",
        latents=Path("runs/wan-14b-semantic-latents"),
        renderer="runs/wan-14b-renderer",
        network=PlannerNetwork(num_layers=40, num_attention_heads=40, attention_head_dim=128, ffn_dim=13824),
    )


def wan_14b_semanticgen() -> SemanticGenModelRecipe:
    return replace(
        wan_1_3b_semanticgen(),
        name="wan-14b-semanticgen",
        description="832x480 pixels, 5 seconds and more, at the size of Wan2.1-T2V-14B",
        autoencoder="Wan2.1-T2V-14B-Diffusers",
        encoder="Qwen2.5-VL-72B-Instruct",
        renderer="runs/wan-14b-renderer",
        planner="runs/wan-14b-planner",
    )


def _train_at_scale(num_steps: int) -> TrainingConfig:
    """Steps are those of the paper's ablation; it gives no batch size and no learning rate."""
    return TrainingConfig(
        num_steps=num_steps,
        learning_rate=1e-5,
        betas=(0.9, 0.95),
        schedule=ScheduleConfig(warmup_steps=500),
        ema_decay=0.0,
        prefetch_batches=1,
    )


# Twins that take seconds.


def smoke_encoder_frames() -> SemanticFramesRecipe:
    clips = replace(_SMOKE_CLIPS, num_frames=10)
    return make_twin(tiny_encoder_frames(), clips=clips, data=replace(_SCRIPT_DATA, num_clips=6))


def smoke_semantic_frames() -> SemanticFramesRecipe:
    return make_twin(tiny_semantic_frames(), clips=_SMOKE_CLIPS, data=replace(_SCRIPT_DATA, num_clips=6))


def smoke_semantic_encoder() -> EncoderRecipe:
    return make_twin(
        tiny_semantic_encoder(),
        network=TowerNetwork(feature_dim=24, depth=1, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=4),
        compressor=CompressorNetwork(semantic_dim=4, hidden_dim=16),
        settings=EncoderSettings(batch_size=2),
    )


def smoke_semantic_latents() -> SemanticLatentsRecipe:
    return make_twin(
        tiny_semantic_latents(),
        clips=_SMOKE_CLIPS,
        data=replace(_SCRIPT_DATA, num_clips=6),
        autoencoder="runs/smoke-autoencoder",
    )


def smoke_vae_plan_latents() -> SemanticLatentsRecipe:
    return replace(
        smoke_semantic_latents(),
        name="smoke-vae-plan-latents",
        description="seconds-long twin of tiny-vae-plan-latents, for tests",
        semantic_encoder="runs/smoke-autoencoder/model/vae",
    )


def smoke_renderer() -> RendererRecipe:
    recipe = tiny_renderer()
    return make_twin(
        recipe,
        backbone="runs/smoke-backbone",
        temporal_ratio=4,
        compressor=CompressorNetwork(semantic_dim=4, hidden_dim=16),
        settings=replace(recipe.settings, batch_size=2, window_seconds=1.0),
    )


def smoke_planner() -> PlannerRecipe:
    recipe = tiny_planner()
    return make_twin(
        recipe,
        network=PlannerNetwork(num_layers=1, num_attention_heads=2, attention_head_dim=12, ffn_dim=16, freq_dim=16),
        settings=replace(recipe.settings, batch_size=2),
    )


def smoke_semanticgen() -> SemanticGenModelRecipe:
    return make_twin(
        tiny_semanticgen(),
        autoencoder="runs/smoke-autoencoder",
        generation=BUILT_IN.override(
            height=16, width=16, num_frames=17, num_inference_steps=2, num_planning_steps=2, window_seconds=1.0
        ),
    )


def smoke_reader() -> ReaderRecipe:
    return make_twin(
        tiny_reader(),
        network=ReaderNetwork(width=4, feature_dim=8, size=16),
        settings=ReaderSettings(batch_size=2),
    )
