"""Recipes of the models that are trained here; each function makes the recipe of its name. Imports no torch.

tiny        64x64 pixels, 17 frames, trained in minutes on an accelerator, in days on two CPU cores; ablations follow
small       128x128 pixels, 33 frames, wider and deeper; meant for an accelerator
smoke       twins of the others that take seconds, whose results are noise: they show that a machine can run the others,
            and let tests run every step

In order: autoencoder, latents, backbone, expert, what learns from an expert (one-way, few-step), adapters of an expert
(lora, preference), model.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sememe.data.caption_policy import CaptionPolicy
from sememe.training.config import (
    UNBOUNDED,
    ScheduleConfig,
    TrainingConfig,
    make_twin,
    train_adapter,
    train_transformer,
)
from sememe.training.recipes import (
    AutoencoderRecipe,
    ClipFormat,
    LatentsRecipe,
    LinearNetwork,
    Regeneration,
    SchedulerSettings,
    TextNetwork,
    WorldData,
)
from sememe.video_as_prompt.settings import BUILT_IN
from sememe.video_as_prompt.stage_settings import (
    BackboneRecipe,
    BackboneSettings,
    ExpertRecipe,
    ExpertSettings,
    FewStepRecipe,
    FewStepSettings,
    LoraRecipe,
    OneWayRecipe,
    PairedRecipe,
    PreferenceRecipe,
    PreferenceSettings,
    VideoAsPromptModelRecipe,
    WanNetwork,
    continue_expert,
)


def tiny_autoencoder() -> AutoencoderRecipe:
    """The autoencoder: a code of principal components, and a refinement of what is decoded, which is trained."""
    return AutoencoderRecipe(
        name="tiny-autoencoder",
        description="the video autoencoder of tiny: principal components, and a refinement of the decoder",
        network=LinearNetwork(noise_level=0.6),
        training=TrainingConfig(
            num_steps=UNBOUNDED,
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
    return LatentsRecipe(
        name="tiny-latents",
        description="48,000 clips of the world, 64x64 pixels and 17 frames, encoded by the autoencoder of tiny",
        # A thousand random conditions beside those of the catalogue: what an expert learns of many holds for others.
        data=WorldData(num_clips=48_000, num_random=1000),
        autoencoder="runs/tiny-autoencoder",
    )


def tiny_generations() -> LatentsRecipe:
    """Latents with the errors that the model makes, to train its decoder on: `generations` of its autoencoder."""
    return LatentsRecipe(
        name="tiny-generations",
        description="1,000 clips of the world as tiny generates them from their noised latents",
        data=WorldData(num_clips=1000),
        autoencoder="video-as-prompt/tiny",
        regeneration=Regeneration(model="video-as-prompt/tiny"),
    )


def tiny_backbone() -> BackboneRecipe:
    return BackboneRecipe(
        name="tiny-backbone",
        description="the image-to-video backbone of tiny, with its text encoder and tokenizer",
        latents=Path("runs/tiny-latents"),
        # Tokens of 8x8 pixels: at equal compute, four times as many tokens of half the width learn far better.
        network=WanNetwork(patch_size=1, num_attention_heads=5, ffn_dim=1280),
        settings=BackboneSettings(
            batch_size=48,
            sigma_shift=3.0,
            captions=CaptionPolicy(drop_target_caption=0.2, drop_reference_caption=0.0, full_share=0.9),
        ),
        training=train_transformer(
            learning_rate=1.5e-3, warmup_steps=80, ema_decay=0.998, max_minutes=60.0, compile="blocks"
        ),
    )


def tiny_expert() -> ExpertRecipe:
    return ExpertRecipe(
        name="tiny-expert",
        description="the expert of tiny: one-way, in every block, captions that do not name the condition",
        latents=Path("runs/tiny-latents"),
        backbone="runs/tiny-backbone",
        settings=ExpertSettings(num_references=12, targets_per_reference=4),
        training=train_transformer(
            # Not compiled: on an H200 compiled blocks gave a loss that is not finite in the fourth step (2026-11-26).
            learning_rate=1.2e-3,
            warmup_steps=60,
            ema_decay=0.997,
            max_minutes=240.0,
        ),
    )


def tiny_model() -> VideoAsPromptModelRecipe:
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
    return _vary_expert("tiny-expert-joint", "two-way attention, as in the released models", attention_mode="joint")


def tiny_expert_leaky_captions() -> ExpertRecipe:
    captions = CaptionPolicy(drop_target_caption=0.1, drop_reference_caption=0.1, full_share=1.0)
    about = "captions name the condition nearly always, as the official recipe has it"
    return _vary_expert("tiny-expert-leaky-captions", about, captions=captions)


def tiny_expert_no_shared_scenes() -> ExpertRecipe:
    about = "batches do not show the same scene under different conditions on purpose"
    return _vary_expert("tiny-expert-no-shared-scenes", about, same_scene_share=0.0)


def tiny_expert_half_blocks() -> ExpertRecipe:
    about = "an expert in every second block"
    return _vary_expert("tiny-expert-half-blocks", about, expert_blocks=(0, 2, 4, 6))


def tiny_expert_24_conditions() -> ExpertRecipe:
    return _vary_expert("tiny-expert-24-conditions", "24 of the trained conditions only", num_conditions=24)


def tiny_expert_single_targets() -> ExpertRecipe:
    about = "every target has a reference of its own, with as many pairs a batch"
    return _vary_expert("tiny-expert-single-targets", about, num_references=48, targets_per_reference=1)


def tiny_released_expert() -> ExpertRecipe:
    """An expert trained as the released ones were, to measure there what can be done about an ignored reference.

    Two-way, captions that name the condition in 98 of 100 cases, and no batch that shows one scene under different
    conditions, as the official recipes have it.
    """
    recipe = _vary_expert(
        "tiny-released-expert",
        "",
        attention_mode="joint",
        reference_timestep=1.0,
        same_scene_share=0.0,
        captions=CaptionPolicy(drop_target_caption=0.02, drop_reference_caption=0.02, full_share=1.0),
    )
    about = "an expert of tiny that learns as the released ones did: two-way, captions that name the condition"
    return replace(recipe, description=about)


def _vary_expert(name: str, about: str, **changes: Any) -> ExpertRecipe:
    """Return `tiny_expert` with changes of the recipe or of its settings."""
    recipe = tiny_expert()
    inner = {key: changes.pop(key) for key in list(changes) if hasattr(recipe.settings, key)}
    settings = replace(recipe.settings, **inner)
    return replace(recipe, name=name, description=f"ablation: {about}", settings=settings, **changes)


# Experts that learn from another one.


def tiny_one_way() -> OneWayRecipe:
    """A one-way expert of the two-way one, whose reference is then encoded once for all steps."""
    return continue_expert(
        OneWayRecipe,
        tiny_expert_joint(),
        name="tiny-one-way",
        description="a one-way expert that learns from the two-way one of tiny-expert-joint",
        training=train_transformer(learning_rate=6e-4, warmup_steps=20, ema_decay=0.98, max_minutes=25.0),
    )


def tiny_few_step() -> FewStepRecipe:
    """An expert of two steps without guidance, a tenth of the forwards of twelve guided steps.

    The teacher takes six steps, which are nearly as accurate as twelve. It is most of the cost, so that its paths for
    100 batches are gone over again and again.
    """
    return continue_expert(
        FewStepRecipe,
        tiny_expert(),
        name="tiny-few-step",
        description="an expert for two steps and no guidance, which learns from the expert of tiny under guidance",
        settings=FewStepSettings(num_references=4, targets_per_reference=4, num_steps=2, teacher_steps=3),
        training=replace(train_adapter(learning_rate=4e-4, max_minutes=90.0), repeat_after=100),
    )


def tiny_lora() -> LoraRecipe:
    """An adapter of the expert; `--set latents=FOLDER` teaches it conditions of one's own."""
    return continue_expert(
        LoraRecipe,
        tiny_expert(),
        name="tiny-lora",
        description="a LoRA on the expert of tiny, which itself stays as it is",
        training=train_adapter(learning_rate=1e-3, max_minutes=25.0),
    )


def tiny_preference() -> PreferenceRecipe:
    """An adapter that learns from outcomes of one picture, of which one shows what the reference does."""
    return continue_expert(
        PreferenceRecipe,
        tiny_expert(),
        name="tiny-preference",
        description="a LoRA on the expert of tiny that learns to prefer what the reference shows",
        settings=PreferenceSettings(num_references=8, targets_per_reference=2),
        training=train_adapter(learning_rate=3e-4, max_minutes=25.0),
    )


def tiny_few_step_model() -> VideoAsPromptModelRecipe:
    return replace(
        tiny_model(),
        name="tiny-few-step-model",
        description="64x64 pixels and 17 frames in two steps without guidance",
        expert="runs/tiny-few-step",
        scheduler=SchedulerSettings(kind="euler_trailing"),
        generation=BUILT_IN.override(num_inference_steps=2, reference_guidance_scale=1.0, guidance_interval=(0.0, 1.0)),
    )


_SMALL_CLIPS = ClipFormat(num_frames=33, height=128, width=128)


def small_autoencoder() -> AutoencoderRecipe:
    recipe = tiny_autoencoder()
    return replace(
        recipe,
        name="small-autoencoder",
        description="the video autoencoder of small: principal components, and a refinement of the decoder",
        clips=_SMALL_CLIPS,
        network=LinearNetwork(hidden_channels=128, num_layers=4),
        training=replace(recipe.training, learning_rate=5e-4, ema_decay=0.999, prefetch_batches=8),
    )


def small_latents() -> LatentsRecipe:
    return replace(
        tiny_latents(),
        name="small-latents",
        description="48,000 clips of the world, 128x128 pixels and 33 frames, encoded by the autoencoder of small",
        clips=_SMALL_CLIPS,
        autoencoder="runs/small-autoencoder",
    )


def small_backbone() -> BackboneRecipe:
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
    return replace(
        tiny_model(),
        name="small-model",
        description="128x128 pixels and 33 frames",
        autoencoder="runs/small-autoencoder",
        backbone="runs/small-backbone",
        expert="runs/small-expert",
        generation=BUILT_IN.override(height=128, width=128, num_frames=33),
    )


# All conditions, each in two scenes: the least that can be paired.
_SMOKE_DATA = WorldData(num_clips=308, clips_per_scene=154)
_SMOKE_CLIPS = ClipFormat(num_frames=9, height=16, width=16)


def smoke_autoencoder() -> AutoencoderRecipe:
    recipe = tiny_autoencoder()
    return make_twin(
        recipe,
        clips=_SMOKE_CLIPS,
        data=_SMOKE_DATA,
        network=LinearNetwork(latent_channels=4, patch_size=4, hidden_channels=8, num_layers=1, num_start_clips=16),
        settings=replace(recipe.settings, batch_size=2),
    )


def smoke_latents() -> LatentsRecipe:
    return make_twin(tiny_latents(), clips=_SMOKE_CLIPS, data=_SMOKE_DATA)


def smoke_backbone() -> BackboneRecipe:
    return make_twin(
        tiny_backbone(),
        network=WanNetwork(
            num_mask_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=24, ffn_dim=32, freq_dim=16
        ),
        text=TextNetwork(vocab_size=200, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
        settings=BackboneSettings(batch_size=4),
    )


def smoke_expert() -> ExpertRecipe:
    return _shorten_expert(tiny_expert())


def smoke_expert_joint() -> ExpertRecipe:
    return _shorten_expert(tiny_expert_joint())


def smoke_one_way() -> OneWayRecipe:
    return _shorten_expert(tiny_one_way())


def smoke_few_step() -> FewStepRecipe:
    return _shorten_expert(tiny_few_step())


def smoke_lora() -> LoraRecipe:
    return _shorten_expert(tiny_lora())


def smoke_preference() -> PreferenceRecipe:
    return _shorten_expert(tiny_preference())


def smoke_model() -> VideoAsPromptModelRecipe:
    return make_twin(
        tiny_model(),
        generation=BUILT_IN.override(height=16, width=16, num_frames=9, num_inference_steps=2),
    )


_PairedT = TypeVar("_PairedT", bound=PairedRecipe)


def _shorten_expert(recipe: _PairedT) -> _PairedT:
    return make_twin(recipe, settings=replace(recipe.settings, num_references=2, targets_per_reference=2))
