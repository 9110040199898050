"""Whole pipelines of tiny random models, made in milliseconds."""

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from copies import built_once
from sememe.video import Clip
from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
from video_as_prompt import cogvideox_factories
from video_as_prompt.wan_factories import TEXT_DIM, make_linear_vae, make_transformer, make_wan_vae

DEFAULTS = {
    "height": 32,
    "width": 48,
    "num_frames": 5,
    "fps": 8.0,
    "num_inference_steps": 2,
    "guidance_scale": 1.0,
    "reference_guidance_scale": 1.0,
}
WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "ball", "cat", "melts", "blurry")


def make_tokenizer(max_length: int = 8) -> PreTrainedTokenizerFast:
    """Words to numbers, with an end mark, as T5 has it."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        model_max_length=max_length,
    )


@built_once
def make_text_encoder(seed: int = 0) -> UMT5EncoderModel:
    torch.manual_seed(seed)
    config = UMT5Config(
        vocab_size=len(WORDS), d_model=TEXT_DIM, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
    )
    return UMT5EncoderModel(config).eval()


def make_pipeline(
    attention_mode: str = "cached",
    vae: str = "linear",
    *,
    clip: bool = False,
    in_channels: int | None = None,
    expand_timesteps: bool = False,
    **defaults: Any,
) -> VideoAsPromptPipeline:
    """A pipeline of 32x48 pixels and 5 frames, with or without CLIP; with 4 `in_channels` from text alone."""
    settings: dict[str, Any] = {} if in_channels is None else {"in_channels": in_channels}
    parts: dict[str, Any] = {"tokenizer": make_tokenizer(), "text_encoder": make_text_encoder()}
    if clip:
        settings = {"image_dim": 20, "added_kv_proj_dim": 48}
        torch.manual_seed(7)
        vision = CLIPVisionConfig(
            hidden_size=20,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
        parts["tokenizer"] = make_tokenizer(512)
        parts["image_encoder"] = CLIPVisionModel(vision).eval()
        parts["image_processor"] = CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        )
    pipeline = VideoAsPromptPipeline(
        **parts,
        vae=make_linear_vae() if vae == "linear" else make_wan_vae(),
        transformer=make_transformer(attention_mode=attention_mode, **settings),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        generation_defaults=DEFAULTS | defaults,
        expand_timesteps=expand_timesteps,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_cogvideox_pipeline(
    *, learned: bool = False, takes_image: bool = True, **defaults: Any
) -> VideoAsPromptPipeline:
    """The same on CogVideoX, two-way, with references at the target's timestep."""
    channels = cogvideox_factories.LATENT_CHANNELS
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        sample_height=32,
        sample_width=48,
        temporal_compression_ratio=4,
        scaling_factor=0.7,
    ).eval()
    transformer = cogvideox_factories.make_transformer(
        reference_timestep=None,
        in_channels=2 * channels if takes_image else channels,
        sample_height=4,
        sample_width=6,
        sample_frames=9,
        use_learned_positional_embeddings=learned,
        max_text_seq_length=8,
    )
    pipeline = VideoAsPromptPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=make_text_encoder(),
        vae=vae,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        ),
        generation_defaults=DEFAULTS | {"num_frames": 9} | defaults,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_clip(seed: int = 0, num_frames: int = 9, height: int = 40, width: int = 50, fps: float = 12.0) -> Clip:
    random = np.random.default_rng(seed)
    return Clip(random.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8), fps)


def make_picture(seed: int = 50, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
