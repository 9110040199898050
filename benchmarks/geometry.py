"""The sizes that are measured, and models of those sizes with random weights."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel
from torch import nn

from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceInputs

AttentionMode = Literal["joint", "cached"]

LATENT_CHANNELS = 16
FIRST_FRAME_CHANNELS = 4 + LATENT_CHANNELS
"""Mask and latents of the first frame, behind the noisy latents, as Wan's image-to-video models have them."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes of a Wan transformer and of what it is given.

    Attributes:
        frames: latent frames of the target, and of each reference.
        rows: of tokens in a frame; each token stands for 2x2 latents.
        columns: of tokens in a frame.
        num_layers: transformer blocks.
        num_heads: of an attention.
        head_dim: of a head; the width is `num_heads * head_dim`.
        ffn_dim: inner width of a feed-forward.
        text_dim: of text embeddings.
        text_tokens: of a prompt, and of a reference's caption.
        image_dim: of image embeddings; None for a backbone without them.
        image_tokens: of a picture.
        num_references: of which each has as many tokens as the target.
    """

    frames: int
    rows: int
    columns: int
    num_layers: int
    num_heads: int
    head_dim: int
    ffn_dim: int
    text_dim: int
    text_tokens: int
    image_dim: int | None = None
    image_tokens: int = 0
    num_references: int = 1

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def num_tokens(self) -> int:
        """Tokens of the target, and of each reference."""
        return self.frames * self.rows * self.columns

    def every(self, step: int) -> tuple[int, ...]:
        """The blocks 0, step, 2 * step, ...: one in `step` has an expert."""
        return tuple(range(0, self.num_layers, step))

    def to_config(self) -> dict[str, Any]:
        """Arguments of the stock transformer."""
        return {
            "patch_size": (1, 2, 2),
            "num_attention_heads": self.num_heads,
            "attention_head_dim": self.head_dim,
            "in_channels": LATENT_CHANNELS + FIRST_FRAME_CHANNELS,
            "out_channels": LATENT_CHANNELS,
            "text_dim": self.text_dim,
            "ffn_dim": self.ffn_dim,
            "num_layers": self.num_layers,
            "image_dim": self.image_dim,
            "added_kv_proj_dim": None if self.image_dim is None else self.width,
        }


TRIAL = Geometry(
    frames=13,
    rows=10,
    columns=16,
    num_layers=8,
    num_heads=6,
    head_dim=128,
    ffn_dim=3072,
    text_dim=768,
    text_tokens=512,
)
"""Wan's shape at a size that two cores can compute: 13 latent frames as at 49 frames of video, 2,080 tokens each."""

QUICK = Geometry(
    frames=2,
    rows=3,
    columns=4,
    num_layers=4,
    num_heads=2,
    head_dim=24,
    ffn_dim=96,
    text_dim=16,
    text_tokens=6,
)
"""Says that everything runs, and nothing about speed."""

WAN_14B = Geometry(
    frames=13,
    rows=30,
    columns=52,
    num_layers=40,
    num_heads=40,
    head_dim=128,
    ffn_dim=13824,
    text_dim=4096,
    text_tokens=512,
    image_dim=1280,
    image_tokens=257,
)
"""Wan2.1-I2V-14B at 480x832 pixels and 49 frames."""

WAN_QUICK = replace(QUICK, image_dim=20, image_tokens=5, text_tokens=512)


def make_stock(geometry: Geometry, dtype: torch.dtype = torch.float32, device: str = "cpu") -> WanTransformer3DModel:
    """The stock transformer with random weights."""
    with init_empty_weights(include_buffers=False):
        model = WanTransformer3DModel(**geometry.to_config())
    return fill_weights(model, dtype, device)


def make_transformer(
    geometry: Geometry,
    expert_blocks: tuple[int, ...],
    mode: AttentionMode,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> WanVideoAsPromptTransformer:
    """The same with experts, whose weights are random too."""
    with init_empty_weights(include_buffers=False):
        model = WanVideoAsPromptTransformer(
            **geometry.to_config(), expert_blocks=expert_blocks, attention_mode=mode, reference_timestep=1.0
        )
    return fill_weights(model, dtype, device)


def fill_weights(model: Any, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Any:
    """Gives a model that was made without weights random ones, where they are to live.

    As where a model is loaded in `dtype`, the parts that the class names as too delicate for it stay in float32, and
    computed tables are left as they are.
    """
    random = torch.Generator(device).manual_seed(seed)
    delicate = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in list(model.named_parameters()):
        parts = name.split(".")
        weight = torch.empty(parameter.shape, device=device, dtype=torch.float32 if delicate & {*parts} else dtype)
        if parameter.ndim == 1 and parts[-1] == "weight":
            weight.fill_(1.0)  # of a norm
        else:
            fan_in = parameter[0].numel() if parts[-1] == "weight" else parameter.shape[-1]
            weight.normal_(std=fan_in**-0.5, generator=random)
        setattr(model.get_submodule(".".join(parts[:-1])), parts[-1], nn.Parameter(weight, requires_grad=False))
    return model.to(device).eval()


@dataclass(frozen=True)
class StepInputs:
    """What a generation is given, as the transformer takes it; batch 1.

    Attributes:
        latents: (1, channel, frame, height, width), float32 noise.
        condition: (1, channel, frame, height, width), mask and first frame.
        positive: (1, token, text_dim), a text.
        negative: the same of what text guidance leads away from.
        image_embeds: (1, token, image_dim), where the backbone reads them.
        reference: clean latents, mask and first frame, captions and image embeddings of the references.
    """

    latents: torch.Tensor
    condition: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor
    image_embeds: torch.Tensor | None
    reference: ReferenceInputs


def make_inputs(
    geometry: Geometry, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 1
) -> StepInputs:
    """Random inputs of a geometry."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(device, kind)

    grid = (geometry.frames, 2 * geometry.rows, 2 * geometry.columns)
    image_dim = geometry.image_dim
    count = range(geometry.num_references)
    return StepInputs(
        latents=draw(1, LATENT_CHANNELS, *grid, kind=torch.float32),
        condition=draw(1, FIRST_FRAME_CHANNELS, *grid),
        positive=draw(1, geometry.text_tokens, geometry.text_dim),
        negative=draw(1, geometry.text_tokens, geometry.text_dim),
        image_embeds=None if image_dim is None else draw(1, geometry.image_tokens, image_dim),
        reference=ReferenceInputs(
            tuple(draw(1, LATENT_CHANNELS + FIRST_FRAME_CHANNELS, *grid) for _ in count),
            tuple(draw(1, geometry.text_tokens, geometry.text_dim) for _ in count),
            None if image_dim is None else tuple(draw(1, geometry.image_tokens, image_dim) for _ in count),
        ),
    )
