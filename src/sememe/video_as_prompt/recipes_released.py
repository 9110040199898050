"""Recipes at the sizes of released models; each function makes the recipe of its name. Imports no torch.

wan-14b     an expert on Wan2.1-I2V-14B, as the released one is; reads the folder `Wan2.1-I2V-14B-480P-Diffusers` of the
            backbone in the layout of diffusers
wan-1-3b    an expert on Wan2.1-T2V-1.3B, which has no first frame: the reference and the text say all
cogvideox   an expert on CogVideoX-5B image-to-video, as the released one is; reads the folder `CogVideoX-5b-I2V`, its
            twin any model of that layout in `smoke-cogvideox`

None of them was trained. Those on Wan have the twins of tiny in `recipes`.
"""

from dataclasses import replace
from pathlib import Path

from sememe.data.caption_policy import CaptionPolicy
from sememe.training.config import ScheduleConfig, TrainingConfig, make_twin
from sememe.training.recipes import ClipFormat, LatentsRecipe, WorldData
from sememe.video_as_prompt.settings import GuidanceSettings
from sememe.video_as_prompt.stage_settings import (
    ExpertRecipe,
    ExpertSettings,
    FewStepRecipe,
    FewStepSettings,
    LoraRecipe,
    OneWayRecipe,
    PreferenceRecipe,
    PreferenceSettings,
    continue_expert,
)

_CAPTIONS = CaptionPolicy(drop_target_caption=0.5, drop_reference_caption=0.5)

_REPEAT_AFTER = 1000
"""Steps of a distillation to few steps after which batches come again. The teacher's path of a clip of 49 frames of
832x480 pixels takes 21 MB of memory."""


def wan_14b_latents() -> LatentsRecipe:
    """Clips at the backbone's own size; `--set dataset=FOLDER` takes those of a dataset."""
    return LatentsRecipe(
        name="wan-14b-latents",
        description="clips of 832x480 pixels and 49 frames, with latents of Wan2.1, texts and image embeddings",
        clips=ClipFormat(num_frames=49, height=480, width=832, fps=16.0),
        data=WorldData(num_clips=4_000),
        autoencoder="Wan2.1-I2V-14B-480P-Diffusers",
        first_frame_fill="grey",
        # UMT5-XXL and CLIP in every step would take more than they are worth.
        text_encoder="Wan2.1-I2V-14B-480P-Diffusers",
        text_length=512,
        first_frame_encoder="Wan2.1-I2V-14B-480P-Diffusers",
        batch_size=1,
        dtype="bfloat16",
    )


def wan_14b_expert() -> ExpertRecipe:
    """Two-way, an expert in every fourth block, the reference at timestep 1 (the released configuration)."""
    return ExpertRecipe(
        name="wan-14b-expert",
        description="an expert on Wan2.1-I2V-14B: two-way, flow matching, image embeddings",
        latents=Path("runs/wan-14b-latents"),
        backbone="Wan2.1-I2V-14B-480P-Diffusers",
        attention_mode="joint",
        expert_blocks=tuple(range(0, 40, 4)),
        reference_timestep=1.0,
        settings=ExpertSettings(
            num_references=1,
            targets_per_reference=1,
            same_scene_share=0.0,
            sigma_std=1.0,
            sigma_shift=1.0,
            captions=_CAPTIONS,
        ),
        training=_train_at_scale(5e-5),
    )


def wan_14b_lora() -> LoraRecipe:
    return continue_expert(
        LoraRecipe,
        wan_14b_expert(),
        name="wan-14b-lora",
        description="a LoRA on an expert on Wan2.1-I2V-14B, such as the released",
        rank=32,
        training=_train_at_scale(1e-4),
    )


def wan_14b_preference() -> PreferenceRecipe:
    """Rank and learning rate are those of the released code for CogVideoX."""
    return continue_expert(
        PreferenceRecipe,
        wan_14b_expert(),
        name="wan-14b-preference",
        description="a LoRA on an expert on Wan2.1-I2V-14B that learns to prefer what the reference shows",
        rank=32,
        settings=PreferenceSettings(
            num_references=1, targets_per_reference=1, same_scene_share=0.0, sigma_std=1.0, sigma_shift=1.0
        ),
    )


def wan_14b_one_way() -> OneWayRecipe:
    """Makes the released expert, which is two-way, cacheable."""
    return continue_expert(
        OneWayRecipe,
        wan_14b_expert(),
        name="wan-14b-one-way",
        description="a one-way expert on Wan2.1-I2V-14B that learns from a two-way one, such as the released",
    )


def wan_14b_few_step() -> FewStepRecipe:
    """The teacher is the released expert as it is shown: about 50 steps with a guidance of 5."""
    return _take_few_steps(
        wan_14b_expert(),
        name="wan-14b-few-step",
        description="an expert on Wan2.1-I2V-14B for four steps and no guidance, which learns from one of many steps",
        teacher_steps=12,
        # The cache of texts holds no negative prompt but the empty one.
        guidance_scale=5.0,
    )


def wan_1_3b_latents() -> LatentsRecipe:
    return replace(
        wan_14b_latents(),
        name="wan-1-3b-latents",
        description="clips of 832x480 pixels and 49 frames, with latents of Wan2.1 and texts",
        autoencoder="Wan2.1-T2V-1.3B-Diffusers",
        first_frame_fill=None,
        text_encoder="Wan2.1-T2V-1.3B-Diffusers",
        # Without image embeddings texts may have any length, and have the tokenizer's own.
        text_length=None,
        first_frame_encoder=None,
    )


def wan_1_3b_expert() -> ExpertRecipe:
    """One-way, an expert in every block; captions stay, for no first frame tells who and where."""
    recipe = wan_14b_expert()
    return replace(
        recipe,
        name="wan-1-3b-expert",
        description="an expert on Wan2.1-T2V-1.3B: one-way, flow matching, without a first frame",
        latents=Path("runs/wan-1-3b-latents"),
        backbone="Wan2.1-T2V-1.3B-Diffusers",
        attention_mode="cached",
        expert_blocks=None,
        settings=replace(recipe.settings, captions=CaptionPolicy(drop_target_caption=0.1, drop_reference_caption=0.5)),
        training=_train_at_scale(1e-4),
    )


def cogvideox_latents() -> LatentsRecipe:
    """Clips at the backbone's own size; `--set dataset=FOLDER` takes those of a dataset."""
    return LatentsRecipe(
        name="cogvideox-latents",
        description="clips of 720x480 pixels and 49 frames, encoded by the autoencoder of CogVideoX",
        clips=ClipFormat(num_frames=49, height=480, width=720),
        data=WorldData(num_clips=4_000),
        autoencoder="CogVideoX-5b-I2V",
        first_frame_fill="zeros",
        # T5-XXL in every step would take more than the step itself.
        text_encoder="CogVideoX-5b-I2V",
        text_length=226,
        reads_padding=True,
        batch_size=1,
        dtype="bfloat16",
    )


def cogvideox_expert() -> ExpertRecipe:
    """Two-way, with the reference at the target's own timestep (paper section 3.2 and the released configuration)."""
    return ExpertRecipe(
        name="cogvideox-expert",
        description="an expert on CogVideoX-5B image-to-video: two-way, v-prediction",
        latents=Path("runs/cogvideox-latents"),
        backbone="CogVideoX-5b-I2V",
        attention_mode="joint",
        # The released one has an expert in every block but the last.
        expert_blocks=tuple(range(41)),
        reference_timestep=None,
        settings=ExpertSettings(
            num_references=1,
            targets_per_reference=1,
            same_scene_share=0.0,
            # About uniform over the timesteps.
            sigma_std=1.7,
            sigma_shift=1.0,
            captions=_CAPTIONS,
        ),
        training=_train_at_scale(1e-4),
    )


def cogvideox_one_way() -> OneWayRecipe:
    """Makes the released expert, which is two-way, cacheable."""
    return continue_expert(
        OneWayRecipe,
        cogvideox_expert(),
        name="cogvideox-one-way",
        description="a one-way expert on CogVideoX-5B that learns from a two-way one, such as the released",
        # The teacher's follows the target's timestep; encoded once, it has one of its own.
        reference_timestep=0.0,
    )


def cogvideox_few_step() -> FewStepRecipe:
    return _take_few_steps(
        cogvideox_expert(),
        name="cogvideox-few-step",
        description="an expert on CogVideoX-5B for four steps and no guidance, which learns from one of many steps",
        # Steps of both divide the 1000 timesteps.
        teacher_steps=10,
        guidance_scale=6.0,
    )


def _take_few_steps(expert: ExpertRecipe, teacher_steps: int, guidance_scale: float, **about: str) -> FewStepRecipe:
    settings = FewStepSettings(
        num_references=1,
        targets_per_reference=1,
        same_scene_share=0.0,
        captions=expert.settings.captions,
        teacher_steps=teacher_steps,
        guidance=GuidanceSettings(guidance_scale=guidance_scale),
    )
    training = replace(expert.training, repeat_after=_REPEAT_AFTER)
    return continue_expert(FewStepRecipe, expert, settings=settings, training=training, **about)


def cogvideox_lora() -> LoraRecipe:
    return continue_expert(
        LoraRecipe,
        cogvideox_expert(),
        name="cogvideox-lora",
        description="a LoRA on an expert on CogVideoX-5B, such as the released",
        rank=32,
    )


def smoke_cogvideox_latents() -> LatentsRecipe:
    return make_twin(
        cogvideox_latents(),
        clips=ClipFormat(num_frames=9, height=32, width=48),
        data=WorldData(num_clips=308, clips_per_scene=154),
        autoencoder="smoke-cogvideox",
        text_encoder="smoke-cogvideox",
        text_length=8,
        batch_size=32,
    )


def smoke_cogvideox_expert() -> ExpertRecipe:
    recipe = cogvideox_expert()
    return make_twin(
        recipe,
        latents=Path("runs/smoke-cogvideox-latents"),
        backbone="smoke-cogvideox",
        expert_blocks=None,
        settings=replace(recipe.settings, num_references=2, targets_per_reference=2, same_scene_share=0.5),
    )


def _train_at_scale(learning_rate: float) -> TrainingConfig:
    return TrainingConfig(
        num_steps=20_000,
        learning_rate=learning_rate,
        betas=(0.9, 0.95),
        schedule=ScheduleConfig(warmup_steps=500, shape="constant_then_decay"),
        prefetch_batches=1,
    )
