"""Tiny random renderers and what they are given: whole in structure, made in milliseconds."""

from typing import Any

import torch
from diffusers import WanTransformer3DModel

from copies import built_once
from sememe.semanticgen.clocks import LatentClock, SliceClock
from sememe.semanticgen.network_renderer import SemanticGenTransformer
from sememe.semanticgen.windows import SliceShape, WindowLayout, make_layout

CHANNELS = 4
TEXT_DIM = 16
SEMANTIC_DIM = 8
GRID = (4, 3)
SLICE_GRID = (2, 2)
CLOCK = LatentClock(temporal_ratio=8, fps=8.0)
SLICES = SliceClock(fps=4.0)


def make_backbone(seed: int = 0, **settings: Any) -> WanTransformer3DModel:
    """A stock Wan transformer of width 48 and 3 blocks."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "text_dim": TEXT_DIM,
        "freq_dim": 32,
        "ffn_dim": 64,
        "num_layers": 3,
        "rope_max_seq_len": 64,
    }
    return WanTransformer3DModel(**(config | settings)).eval()


@built_once
def make_renderer(seed: int = 0, semantic_dim: int | None = SEMANTIC_DIM, **settings: Any) -> SemanticGenTransformer:
    """A renderer whose weights, but for the projection of semantic tokens, are those of `make_backbone`."""
    return SemanticGenTransformer.from_backbone(make_backbone(seed, **settings), semantic_dim)


def make_target(num_latent_frames: int = 5, batch_size: int = 2, seed: int = 0) -> dict[str, Any]:
    """Arguments of the stock forward."""
    random = torch.Generator().manual_seed(seed)
    shape = (batch_size, CHANNELS, num_latent_frames, 2 * GRID[0], 2 * GRID[1])
    return {
        "hidden_states": torch.randn(shape, generator=random),
        "timestep": torch.linspace(900.0, 100.0, batch_size),
        "encoder_hidden_states": torch.randn(batch_size, 7, TEXT_DIM, generator=random),
    }


def make_features(num_slices: int, batch_size: int = 2, seed: int = 1) -> torch.Tensor:
    """Random features of plans."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, num_slices, *SLICE_GRID, SEMANTIC_DIM, generator=random)


def lay_out(num_latent_frames: int, num_slices: int | None = None, **settings: Any) -> WindowLayout:
    """A layout of the tokens of `make_target` and `make_features`."""
    slices = None if num_slices is None else SliceShape(SLICES.times(num_slices), *SLICE_GRID)
    return make_layout(CLOCK, (num_latent_frames, *GRID), slices, **settings)
