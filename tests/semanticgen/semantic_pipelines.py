"""Whole SemanticGen pipelines of tiny random models."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from semanticgen.renderer_factories import TEXT_DIM, make_renderer
from sememe.semanticgen.compressor import SemanticCompressor
from sememe.semanticgen.encoders import QwenEncoder
from sememe.semanticgen.pipeline import SemanticGenPipeline
from video_as_prompt.pipeline_factories import make_text_encoder, make_tokenizer
from video_as_prompt.wan_factories import LATENT_CHANNELS, make_linear_vae

SEMANTIC_DIM = 3
FPS = 8.0
DEFAULTS: dict[str, Any] = {
    "height": 16,
    "width": 24,
    "num_frames": 17,
    "fps": FPS,
    "num_inference_steps": 2,
    "num_planning_steps": 2,
    "guidance_scale": 2.0,
    "planning_guidance_scale": 2.0,
    "window_seconds": 1.0,
}


def make_tower(seed: int = 3) -> Qwen2_5_VisionTransformerPretrainedModel:
    """Features of 8x8 pixels and 2 frames, so 2 rows and 3 columns for clips of 16x24 pixels."""
    torch.manual_seed(seed)
    config = Qwen2_5_VLVisionConfig(
        depth=1,
        hidden_size=16,
        intermediate_size=16,
        num_heads=2,
        patch_size=4,
        spatial_merge_size=2,
        temporal_patch_size=2,
        out_hidden_size=12,
        fullatt_block_indexes=[0],
    )
    return Qwen2_5_VisionTransformerPretrainedModel(config).eval()


def make_pipeline(*, takes_image: bool = False, **defaults: Any) -> SemanticGenPipeline:
    """A pipeline of 16x24 pixels at 8 frames per second: latent frames, slices and half windows of 0.5 s."""
    extra = {"in_channels": 2 * LATENT_CHANNELS + 4} if takes_image else {}
    network = {"text_dim": TEXT_DIM, "out_channels": LATENT_CHANNELS, "in_channels": LATENT_CHANNELS}
    numbers = {"in_channels": SEMANTIC_DIM, "out_channels": SEMANTIC_DIM, "patch_size": (1, 1, 1), "num_layers": 1}
    tower = make_tower()
    encoder = QwenEncoder(tower, fps=4.0)
    torch.manual_seed(4)
    compressor = SemanticCompressor(
        encoder.feature_dim, SEMANTIC_DIM, hidden_dim=8, num_layers=1, fps=4.0, encoder=encoder.fingerprint
    )
    pipeline = SemanticGenPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=make_text_encoder(),
        semantic_encoder=tower,
        compressor=compressor.eval(),
        planner=make_renderer(2, None, **(network | numbers)),
        transformer=make_renderer(1, SEMANTIC_DIM, **(network | extra)),
        vae=make_linear_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        generation_defaults=DEFAULTS | defaults,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
