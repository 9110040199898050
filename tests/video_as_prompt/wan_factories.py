"""Tiny random models for tests: whole in structure, a few thousand weights, made in milliseconds."""

from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from copies import built_once
from sememe.backbones.linear_autoencoder import LinearVideoAutoencoder
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceInputs

LATENT_CHANNELS = 4
IN_CHANNELS = LATENT_CHANNELS + 4 + LATENT_CHANNELS
TEXT_DIM = 16
GRID = {"frame": 3, "height": 8, "width": 6}


def make_backbone(seed: int = 0, **settings: Any) -> WanTransformer3DModel:
    """A stock Wan transformer of width 48 and 3 blocks."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "in_channels": IN_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "text_dim": TEXT_DIM,
        "freq_dim": 32,
        "ffn_dim": 64,
        "num_layers": 3,
        "rope_max_seq_len": 64,
    }
    return WanTransformer3DModel(**(config | settings)).eval()


@built_once
def make_transformer(
    seed: int = 0,
    attention_mode: str = "cached",
    expert_blocks: list[int] | None = None,
    reference_timestep: float | None = 0.0,
    **settings: Any,
) -> WanVideoAsPromptTransformer:
    """A backbone with experts that differ from it, as if trained."""
    model = WanVideoAsPromptTransformer.from_backbone(
        make_backbone(seed, **settings),
        expert_blocks,
        attention_mode,
        reference_timestep,
    )
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for _, parameter in model.expert_named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_target(
    model: Any = None, seed: int = 0, batch_size: int = 2, num_frames: int = GRID["frame"]
) -> dict[str, torch.Tensor]:
    """Arguments of the transformer's forward, which are the same for all models; `model` is as on CogVideoX."""
    random = torch.Generator().manual_seed(seed)
    shape = (batch_size, IN_CHANNELS, num_frames, GRID["height"], GRID["width"])
    return {
        "hidden_states": torch.randn(shape, generator=random),
        "timestep": torch.linspace(900.0, 100.0, batch_size),
        "encoder_hidden_states": torch.randn(batch_size, 7, TEXT_DIM, generator=random),
    }


def make_reference(seed: int = 100, batch_size: int = 2, num_frames: tuple[int, ...] = (3,)) -> ReferenceInputs:
    """References of the target's grid; one per entry of `num_frames`."""
    random = torch.Generator().manual_seed(seed)
    size = (GRID["height"], GRID["width"])
    return ReferenceInputs(
        latents=tuple(torch.randn(batch_size, IN_CHANNELS, frames, *size, generator=random) for frames in num_frames),
        text_embeds=tuple(torch.randn(batch_size, 5, TEXT_DIM, generator=random) for _ in num_frames),
    )


def make_wan_vae(seed: int = 0, **settings: Any) -> AutoencoderKLWan:
    """A Wan autoencoder: 4 frames and 8x8 pixels per latent, 4 channels."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "base_dim": 4,
        "z_dim": LATENT_CHANNELS,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "latents_mean": [0.5, -0.25, 0.0, 1.0],
        "latents_std": [2.0, 0.5, 1.0, 3.0],
    }
    return AutoencoderKLWan(**(config | settings)).eval()


def make_linear_vae(seed: int = 0) -> LinearVideoAutoencoder:
    """A linear autoencoder: 4 frames of 4x4 pixels per latent, 4 channels, and a refinement that is not zero."""
    torch.manual_seed(seed)
    vae = LinearVideoAutoencoder(LATENT_CHANNELS, patch_size=4, hidden_channels=8, num_layers=1, noise_level=0.3)
    torch.nn.init.normal_(vae.refiner.conv_out.weight, std=0.02)
    return vae.eval()
