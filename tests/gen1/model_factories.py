"""Tiny random Gen-1 models, whole in structure: made in a second."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, MotionAdapter, PriorTransformer, UNetMotionModel
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DPTImageProcessorPil,
)

from copies import built_once
from gen1.depth_factories import make_dpt
from gen1.unet_factories import CONTENT_DIM, make_image_model, make_unet, stir
from sememe.gen1.network_unet import Gen1UNet
from sememe.gen1.pipeline import Gen1Pipeline
from sememe.gen1.prior import identify_space
from sememe.video import Clip

STEPS = 2


def make_vae() -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    ).eval()


def write_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt, as Stable Diffusion's folders hold them."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"model_max_length": 9, "tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    write_vocabulary(folder)
    return CLIPTokenizer.from_pretrained(folder)


@built_once
def make_text_encoder(kind: Any = CLIPTextModelWithProjection) -> Any:
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=CONTENT_DIM,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=9,
        projection_dim=CONTENT_DIM,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return kind(config).eval()


@built_once
def make_image_encoder(seed: int = 3) -> CLIPVisionModelWithProjection:
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=CONTENT_DIM,
    )
    return CLIPVisionModelWithProjection(config).eval()


def make_image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def make_prior() -> PriorTransformer:
    torch.manual_seed(4)
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=1,
        embedding_dim=CONTENT_DIM,
        num_embeddings=9,
        additional_embeddings=4,
    ).eval()
    with torch.no_grad():
        prior.clip_std.fill_(1.0)
    return prior


def make_prior_scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample_range=5.0)


def make_scheduler(**settings: Any) -> DDIMScheduler:
    config: dict[str, Any] = {"prediction_type": "v_prediction", "clip_sample": False, "steps_offset": 1}
    return DDIMScheduler(**(config | settings))


@built_once
def make_stirred_unet() -> Gen1UNet:
    unet: Gen1UNet = stir(make_unet())
    return unet


def make_parts(folder: Path) -> dict[str, Any]:
    """All components of a model with an inflated U-Net."""
    image_encoder = make_image_encoder()
    return {
        "vae": make_vae(),
        "unet": make_stirred_unet(),
        "scheduler": make_scheduler(),
        "tokenizer": make_tokenizer(folder),
        "text_encoder": make_text_encoder(),
        "prior": make_prior(),
        "prior_scheduler": make_prior_scheduler(),
        "image_encoder": image_encoder,
        "image_processor": make_image_processor(),
        "depth_estimator": make_dpt(),
        "depth_processor": DPTImageProcessorPil(size={"height": 32, "width": 32}),
        "content_space": identify_space(image_encoder),
    }


def make_pipeline(folder: Path, **changes: Any) -> Gen1Pipeline:
    defaults = {"num_inference_steps": STEPS, "prior_num_inference_steps": 2}
    pipeline = Gen1Pipeline(**(make_parts(folder) | {"generation_defaults": defaults} | changes))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@built_once
def make_motion_unet() -> UNetMotionModel:
    """A tiny Stable Diffusion with random motion modules."""
    torch.manual_seed(6)
    adapter = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        use_motion_mid_block=False,
    )
    return stir(UNetMotionModel.from_unet2d(make_image_model(), stir(adapter))).eval()


def make_controlnet() -> ControlNetModel:
    torch.manual_seed(7)
    return stir(
        ControlNetModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            cross_attention_dim=CONTENT_DIM,
            attention_head_dim=2,
            norm_num_groups=4,
            conditioning_embedding_out_channels=(4, 8),
        )
    ).eval()


def make_motion_pipeline(folder: Path, **changes: Any) -> Gen1Pipeline:
    parts = make_parts(folder) | {
        "unet": make_motion_unet(),
        "controlnet": make_controlnet(),
        "text_encoder": make_text_encoder(CLIPTextModel),
        "scheduler": make_scheduler(prediction_type="epsilon"),
        "prior": None,
        "prior_scheduler": None,
        "content_space": None,
        "generation_defaults": {"num_inference_steps": STEPS},
    }
    pipeline = Gen1Pipeline(**(parts | changes))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_source(num_frames: int = 4, height: int = 16, width: int = 16, seed: int = 0) -> Clip:
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    return Clip(frames, 8.0)


def make_picture(seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
