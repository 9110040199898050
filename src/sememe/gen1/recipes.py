"""Gen-1's recipes: the built-in model `tiny`, a start from Stable Diffusion, and twins that take seconds.

In order: `tiny-gen1-frames`, `tiny-gen1-autoencoder`, `tiny-gen1-depth`, `tiny-gen1-clip`, `tiny-gen1-content`,
`tiny-gen1-prior`, `tiny-gen1-latents`, `tiny-gen1-unet`, `tiny-gen1`. Imports no torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sememe.gen1.settings import BUILT_IN
from sememe.gen1.stage_settings import (
    ClipNetwork,
    ClipRecipe,
    ClipSettings,
    CustomisationRecipe,
    CustomisationSettings,
    DepthNetwork,
    DepthRecipe,
    DepthSettings,
    Gen1ContentRecipe,
    Gen1FramesRecipe,
    Gen1LatentsRecipe,
    Gen1ModelRecipe,
    PriorNetwork,
    PriorRecipe,
    PriorSettings,
    UNetNetwork,
    UNetRecipe,
    UNetSettings,
)
from sememe.training.config import (
    AutoencoderSettings,
    PhaseConfig,
    ScheduleConfig,
    TrainingConfig,
    make_twin,
    train_transformer,
)
from sememe.training.recipes import AutoencoderRecipe, ClipFormat, LinearNetwork, WorldData

_CLIPS = ClipFormat(num_frames=8)
_DATA = WorldData(num_clips=5_400, clips_per_scene=3, kind="looks")
_SMOKE_CLIPS = ClipFormat(num_frames=3, height=16, width=16)
_SMOKE_DATA = WorldData(num_clips=4, clips_per_scene=2, kind="looks")


def tiny_gen1_frames() -> Gen1FramesRecipe:
    return Gen1FramesRecipe(
        name="tiny-gen1-frames",
        description="5,400 clips of the world, three looks of each scene, 64x64 pixels and 8 frames, with their depth",
        clips=_CLIPS,
        data=_DATA,
        # Rendering is slow: little is lost when it is interrupted.
        batch_size=8,
    )


def tiny_gen1_autoencoder() -> AutoencoderRecipe:
    """The autoencoder of single frames: 16 numbers for 4x4 pixels, and a refinement of what is decoded."""
    return AutoencoderRecipe(
        name="tiny-gen1-autoencoder",
        description="the image autoencoder of tiny: principal components, and a refinement of the decoder",
        clips=_CLIPS,
        data=_DATA,
        dataset=Path("runs/tiny-gen1-frames"),
        network=LinearNetwork(latent_channels=16, patch_size=4, temporal_patch_size=1, hidden_channels=48),
        settings=AutoencoderSettings(batch_size=4),
        # It has convolutions alone, which Muon does not train.
        training=replace(
            train_transformer(learning_rate=2e-3, warmup_steps=30, ema_decay=0.99, max_minutes=6.0), optimizer="adamw"
        ),
    )


def tiny_gen1_depth() -> DepthRecipe:
    return DepthRecipe(
        name="tiny-gen1-depth",
        description="the depth network of tiny: a small Depth-Anything, taught by the world",
        frames=Path("runs/tiny-gen1-frames"),
        training=train_transformer(learning_rate=2e-3, warmup_steps=50, ema_decay=0.99, max_minutes=12.0),
    )


def tiny_gen1_clip() -> ClipRecipe:
    """The CLIP, whose image embeddings are the content."""
    return ClipRecipe(
        name="tiny-gen1-clip",
        description="the CLIP of tiny: embeddings of pictures and captions of the world",
        frames=Path("runs/tiny-gen1-frames"),
        training=train_transformer(learning_rate=1e-3, warmup_steps=50, ema_decay=0.99, max_minutes=15.0),
    )


def tiny_gen1_latents() -> Gen1LatentsRecipe:
    return Gen1LatentsRecipe(
        name="tiny-gen1-latents",
        description="the clips of tiny-gen1-frames as latents, their structure and content",
        clips=_CLIPS,
        data=_DATA,
        dataset=Path("runs/tiny-gen1-frames"),
        autoencoder="runs/tiny-gen1-autoencoder",
        depth_estimator="runs/tiny-gen1-depth",
        image_encoder="runs/tiny-gen1-clip",
    )


def tiny_gen1_content() -> Gen1ContentRecipe:
    """Single pictures, because the prior needs many looks and no motion."""
    return Gen1ContentRecipe(
        name="tiny-gen1-content",
        description="the embeddings of 60,000 pictures of the world, three looks of each scene",
        clips=replace(_CLIPS, num_frames=1),
        data=replace(_DATA, num_clips=60_000),
        image_encoder="runs/tiny-gen1-clip",
    )


def tiny_gen1_prior() -> PriorRecipe:
    return PriorRecipe(
        name="tiny-gen1-prior",
        description="the prior of tiny: image embeddings from captions",
        latents=Path("runs/tiny-gen1-content"),
        clip="runs/tiny-gen1-clip",
        training=train_transformer(learning_rate=1e-3, warmup_steps=50, ema_decay=0.99, max_minutes=30.0),
    )


def tiny_gen1_unet() -> UNetRecipe:
    """The U-Net, in the four phases of the paper; more of its batches are images, which show more looks."""
    return UNetRecipe(
        name="tiny-gen1-unet",
        description="the U-Net of tiny, in four phases: content, time, structure, levels",
        latents=Path("runs/tiny-gen1-latents"),
        autoencoder="runs/tiny-gen1-autoencoder",
        settings=UNetSettings(image_share=0.5),
        training=_train_in_phases({"content": 200, "time": 150, "structure": 500, "levels": 850}, 1.5e-3),
    )


def tiny_gen1() -> Gen1ModelRecipe:
    return Gen1ModelRecipe(
        name="tiny-gen1",
        description="64x64 pixels, any length; small enough for two CPU cores",
        autoencoder="runs/tiny-gen1-autoencoder",
        depth="runs/tiny-gen1-depth",
        clip="runs/tiny-gen1-clip",
        prior="runs/tiny-gen1-prior",
        unet="runs/tiny-gen1-unet",
    )


def tiny_gen1_customisation() -> CustomisationRecipe:
    """A LoRA for the built-in model from pictures of one's own: `--set pictures=FOLDER`."""
    return CustomisationRecipe(
        name="tiny-gen1-customisation",
        description="a LoRA that customises tiny with a handful of pictures; needs pictures=FOLDER",
        pictures=Path("pictures"),
        model="gen1/tiny",
        latents=Path("runs/tiny-gen1-latents"),
        training=TrainingConfig(
            num_steps=400, learning_rate=1e-3, schedule=ScheduleConfig(warmup_steps=20), ema_decay=0.0
        ),
    )


# From Stable Diffusion 1.5, with the encoders of Kandinsky's prior and Depth-Anything, in folders of their names.


def gen1_latents() -> Gen1LatentsRecipe:
    """Clips at the size of the paper; `--set dataset=FOLDER` takes those of a dataset."""
    return Gen1LatentsRecipe(
        name="gen1-latents",
        description="clips of 448x256 pixels and 8 frames, as latents of Stable Diffusion, structure and content",
        clips=ClipFormat(num_frames=8, height=256, width=448),
        autoencoder="stable-diffusion-v1-5",
        depth_estimator="Depth-Anything-V2-Small-hf",
        image_encoder="kandinsky-2-2-prior",
        batch_size=1,
    )


def gen1_unet() -> UNetRecipe:
    """Phases, their lengths and the share of images are the paper's; learning rate and batches are not stated there."""
    return UNetRecipe(
        name="gen1-unet",
        description="a U-Net from Stable Diffusion 1.5, in the four phases of the paper",
        latents=Path("runs/gen1-latents"),
        autoencoder="stable-diffusion-v1-5",
        image_model=Path("stable-diffusion-v1-5"),
        settings=UNetSettings(batch_size=2, image_batch_size=16),
        training=_train_in_phases({"content": 15_000, "time": 75_000, "structure": 25_000, "levels": 10_000}, 5e-5),
    )


# Twins that take seconds.


def smoke_gen1_frames() -> Gen1FramesRecipe:
    return make_twin(tiny_gen1_frames(), clips=_SMOKE_CLIPS, data=_SMOKE_DATA)


def smoke_gen1_autoencoder() -> AutoencoderRecipe:
    recipe = tiny_gen1_autoencoder()
    return make_twin(
        recipe,
        clips=_SMOKE_CLIPS,
        data=_SMOKE_DATA,
        network=replace(recipe.network, latent_channels=4, hidden_channels=8, num_layers=1, num_start_clips=4),
        settings=replace(recipe.settings, batch_size=2),
    )


def smoke_gen1_depth() -> DepthRecipe:
    return make_twin(
        tiny_gen1_depth(),
        network=DepthNetwork(hidden_size=8, num_heads=2, patch_size=4, fusion_size=4, head_size=4),
        settings=DepthSettings(batch_size=2),
    )


def smoke_gen1_clip() -> ClipRecipe:
    return make_twin(
        tiny_gen1_clip(),
        network=ClipNetwork(hidden_size=16, num_image_layers=1, num_text_layers=1, num_heads=2, vocab_size=100),
        settings=ClipSettings(num_scenes=2),
    )


def smoke_gen1_latents() -> Gen1LatentsRecipe:
    return make_twin(tiny_gen1_latents(), clips=_SMOKE_CLIPS, data=_SMOKE_DATA)


def smoke_gen1_content() -> Gen1ContentRecipe:
    return make_twin(tiny_gen1_content(), clips=replace(_SMOKE_CLIPS, num_frames=1), data=_SMOKE_DATA)


def smoke_gen1_prior() -> PriorRecipe:
    return make_twin(
        tiny_gen1_prior(),
        network=PriorNetwork(num_layers=1, num_heads=2, head_dim=8),
        settings=PriorSettings(batch_size=2),
    )


def smoke_gen1_unet() -> UNetRecipe:
    return make_twin(
        tiny_gen1_unet(),
        network=UNetNetwork(block_out_channels=(8, 16), attention_levels=(1,), norm_num_groups=4, max_frames=3),
        settings=UNetSettings(batch_size=1, image_batch_size=2, image_share=0.5),
    )


def smoke_gen1_customisation() -> CustomisationRecipe:
    return make_twin(tiny_gen1_customisation(), settings=CustomisationSettings(rank=2, batch_size=2))


def smoke_gen1() -> Gen1ModelRecipe:
    return make_twin(
        tiny_gen1(),
        generation=BUILT_IN.override(height=16, width=16, num_inference_steps=2, prior_num_inference_steps=2),
    )


def _train_in_phases(num_steps: dict[str, int], learning_rate: float) -> TrainingConfig:
    """Every phase but the last keeps its learning rate, and the last one lowers it to its end."""
    warm = ScheduleConfig(warmup_steps=50, shape="constant")
    phases = [
        PhaseConfig(name=name, num_steps=count, learning_rate=learning_rate, schedule=warm)
        for name, count in num_steps.items()
    ]
    phases[-1] = replace(phases[-1], schedule=ScheduleConfig(warmup_steps=20, shape="cosine", final_ratio=0.02))
    return TrainingConfig(phases=tuple(phases), ema_decay=0.995, save_minutes=5.0)
