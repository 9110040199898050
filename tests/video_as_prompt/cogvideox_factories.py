"""Tiny random CogVideoX models for tests, as `video_as_prompt.wan_factories` makes them of Wan."""

from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel

from copies import built_once
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceInputs

LATENT_CHANNELS = 4
IN_CHANNELS = 2 * LATENT_CHANNELS
TEXT_DIM = 16
TEXT_LENGTH = 5
GRID = {"frame": 3, "height": 8, "width": 6}
LEARNED: dict[str, Any] = {"use_learned_positional_embeddings": True}
SINES: dict[str, Any] = {"use_rotary_positional_embeddings": False}
# CogVideoX 1.5: two latent frames a token, positions counted from the corner, one more embedding.
GROUPED: dict[str, Any] = {"patch_size_t": 2, "ofs_embed_dim": 24, "patch_bias": False}


def make_backbone(seed: int = 0, **settings: Any) -> CogVideoXTransformer3DModel:
    """A stock CogVideoX transformer of width 32 and 3 blocks."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": IN_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "time_embed_dim": 24,
        "text_embed_dim": TEXT_DIM,
        "num_layers": 3,
        "sample_width": GRID["width"],
        "sample_height": GRID["height"],
        "sample_frames": 9,
        "max_text_seq_length": TEXT_LENGTH,
        "use_rotary_positional_embeddings": True,
    }
    return CogVideoXTransformer3DModel(**(config | settings)).eval()


@built_once
def make_transformer(
    seed: int = 0,
    attention_mode: str = "joint",
    expert_blocks: list[int] | None = None,
    reference_timestep: float | None = 0.0,
    **settings: Any,
) -> CogVideoXVideoAsPromptTransformer:
    """A backbone with experts that differ from it, as if trained."""
    model = CogVideoXVideoAsPromptTransformer.from_backbone(
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
    model: CogVideoXVideoAsPromptTransformer,
    seed: int = 0,
    batch_size: int = 2,
    num_frames: int = GRID["frame"],
    size: tuple[int, int] = (GRID["height"], GRID["width"]),
) -> dict[str, Any]:
    """Arguments of the transformer's forward."""
    random = torch.Generator().manual_seed(seed)
    target: dict[str, Any] = {
        "hidden_states": torch.randn(batch_size, num_frames, IN_CHANNELS, *size, generator=random),
        "timestep": torch.linspace(900.0, 100.0, batch_size),
        "encoder_hidden_states": torch.randn(batch_size, TEXT_LENGTH, TEXT_DIM, generator=random),
        "image_rotary_emb": model.rotary_tables(num_frames, *size),
    }
    return target if model.config.ofs_embed_dim is None else target | {"ofs": torch.tensor([2.0])}


def make_reference(
    seed: int = 100,
    batch_size: int = 2,
    num_frames: tuple[int, ...] = (3,),
    size: tuple[int, int] = (GRID["height"], GRID["width"]),
) -> ReferenceInputs:
    """References of the target's grid; one per entry of `num_frames`."""
    random = torch.Generator().manual_seed(seed)
    return ReferenceInputs(
        latents=tuple(torch.randn(batch_size, frames, IN_CHANNELS, *size, generator=random) for frames in num_frames),
        text_embeds=tuple(torch.randn(batch_size, TEXT_LENGTH, TEXT_DIM, generator=random) for _ in num_frames),
    )
