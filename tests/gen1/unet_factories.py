"""Tiny random U-Nets of Stable Diffusion's kind, and what they are given: made in milliseconds."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel

from copies import built_once
from sememe.gen1.network_unet import Gen1UNet

CONTENT_DIM = 16
MAX_FRAMES = 5


def make_image_model(seed: int = 0, **settings: Any) -> UNet2DConditionModel:
    """A U-Net with one level with attention and one without, in 8 and 16 channels."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": CONTENT_DIM,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(config | settings)).eval()


@built_once
def make_unet(seed: int = 0, **settings: Any) -> Gen1UNet:
    """A freshly inflated model."""
    return Gen1UNet.from_image_model(make_image_model(seed, **settings), MAX_FRAMES)


def stir(model: torch.nn.Module, seed: int = 5) -> Any:
    """The same model with all weights that are 0 drawn at random, so that every layer matters."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            drawn = torch.randn(flat.shape, generator=random) * 0.1
            flat.copy_(torch.where(flat == 0, drawn, flat))
    return model


def make_inputs(num_frames: int = 4, batch_size: int = 2, seed: int = 1) -> dict[str, Any]:
    """Arguments of the video model."""
    random = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(batch_size, 12, num_frames, 8, 8, generator=random),
        "timestep": torch.arange(batch_size) * 300 + 100,
        "encoder_hidden_states": torch.randn(batch_size, 3, CONTENT_DIM, generator=random),
    }


def fold(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments for an image model of latents alone, with frames in the batch."""
    num_frames = inputs["sample"].shape[2]
    return {
        "sample": inputs["sample"][:, :4].transpose(1, 2).flatten(0, 1),
        "timestep": inputs["timestep"].repeat_interleave(num_frames),
        "encoder_hidden_states": inputs["encoder_hidden_states"].repeat_interleave(num_frames, dim=0),
    }
