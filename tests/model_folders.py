"""Folders of tiny random models: as the built-in ones are laid out, as the released ones are, and stock ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, UniPCMultistepScheduler

from sememe.video_as_prompt.transformer_files import format_of_model, save_merged
from video_as_prompt import cogvideox_factories, wan_factories
from video_as_prompt.pipeline_factories import make_pipeline

CARD = """---
license: apache-2.0
description: Random weights, for tests.
source: made by a test
---
# random
"""


def save_model(folder: Path, **settings: Any) -> Path:
    """Writes a model of 48x32 pixels and 5 frames, two steps, with guidance by the reference."""
    make_pipeline(**({"reference_guidance_scale": 2.0} | settings)).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


def save_published(folder: Path, family: str = "wan") -> Path:
    """Writes a tiny random model as the released ones lie: the expert merged in, classes that diffusers lacks."""
    if family == "wan":
        pipeline = make_pipeline("joint", "wan", clip=True)
        network = {"image_dim": 20, "added_kv_proj_dim": 48}
        transformer: Any = wan_factories.make_transformer(
            attention_mode="joint", expert_blocks=[0, 2], reference_timestep=1.0, **network
        )
        vae, scheduler = pipeline.vae, UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    else:
        pipeline = make_pipeline("joint")
        transformer = cogvideox_factories.make_transformer(
            expert_blocks=[0, 1], reference_timestep=None, **cogvideox_factories.LEARNED
        )
        vae, scheduler = make_cogvideox_vae(), CogVideoXDDIMScheduler(prediction_type="v_prediction")
    save_merged(transformer, folder / "transformer")
    parts = {"tokenizer": pipeline.tokenizer, "text_encoder": pipeline.text_encoder, "vae": vae, "scheduler": scheduler}
    parts |= {name: pipeline.components[name] for name in ("image_encoder", "image_processor")}
    known = format_of_model(transformer)
    index: dict[str, Any] = {"_class_name": known.official_pipeline, "_diffusers_version": "0.34.0.dev0"}
    index["transformer"] = ["diffusers", known.official_class]
    for name, part in parts.items():
        if part is not None:
            part.save_pretrained(folder / name)
            index[name] = [type(part).__module__.split(".")[0], type(part).__name__.removesuffix("Pil")]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def make_cogvideox_vae() -> AutoencoderKLCogVideoX:
    """A CogVideoX autoencoder: 4 frames and 8x8 pixels per latent, 4 channels."""
    torch.manual_seed(0)
    return AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4),
        latent_channels=cogvideox_factories.LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=64,
        sample_width=48,
    ).eval()


def make_stock(folder: Path, class_name: str) -> Path:
    """Makes a model that has its expert in a folder of its own a stock one: the expert goes, the index says so."""
    shutil.rmtree(folder / "expert")
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("expert", "generation_defaults"):
        del index[name]
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": class_name}))
    return folder
