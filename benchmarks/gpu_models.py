"""Released geometries with random weights on an accelerator; fewer layers where they do not fit."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import init_empty_weights

from benchmarks.contestants import Models
from benchmarks.geometry import WAN_14B, WAN_QUICK, AttentionMode, StepInputs, fill_weights, make_inputs
from sememe.video_as_prompt.network_cogvideox import CogVideoXVideoAsPromptTransformer
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer
from sememe.video_as_prompt.references import ReferenceInputs

SHARE_FOR_WEIGHTS = 0.7
"""Of a device's memory: the rest is for what is computed, and for the records of all contestants."""

_COGVIDEOX_5B: dict[str, Any] = {
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "in_channels": 32,
    "out_channels": 16,
    "time_embed_dim": 512,
    "text_embed_dim": 4096,
    "num_layers": 42,
    "sample_width": 90,
    "sample_height": 60,
    "sample_frames": 49,
    "max_text_seq_length": 226,
    "use_rotary_positional_embeddings": True,
    "use_learned_positional_embeddings": True,
}
_COGVIDEOX_QUICK: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "time_embed_dim": 24,
    "text_embed_dim": 16,
    "num_layers": 4,
    "sample_width": 6,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": 5,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured.

    Attributes:
        family: `wan` or `cogvideox`.
        experts: `released`, which is one block in four on Wan and all but the last on CogVideoX, or `every`.
        num_layers: blocks.
        is_quick: whether at a size that says nothing about speed.
    """

    family: str
    experts: str
    num_layers: int
    is_quick: bool

    @property
    def expert_blocks(self) -> tuple[int, ...]:
        if self.experts == "every":
            return tuple(range(self.num_layers))
        return tuple(range(0, self.num_layers, 4)) if self.family == "wan" else tuple(range(self.num_layers - 1))

    def to_config(self) -> dict[str, Any]:
        """Arguments of the transformer."""
        own: dict[str, Any] = {"expert_blocks": self.expert_blocks, "attention_mode": "joint"}
        if self.family == "wan":
            geometry = WAN_QUICK if self.is_quick else WAN_14B
            return geometry.to_config() | own | {"num_layers": self.num_layers, "reference_timestep": 1.0}
        config = _COGVIDEOX_5B | _COGVIDEOX_QUICK if self.is_quick else _COGVIDEOX_5B
        return config | own | {"num_layers": self.num_layers, "reference_timestep": None}


def native_layers(family: str, *, is_quick: bool) -> int:
    """Blocks of the released model."""
    if is_quick:
        return 2
    return WAN_14B.num_layers if family == "wan" else int(_COGVIDEOX_5B["num_layers"])


def fit_layers(case: Case, num_bytes: int, bytes_per_weight: int) -> int:
    """The most blocks whose weights leave enough of `num_bytes` free; a multiple of 4 where they are not all."""
    four, eight = (_count_weights(replace(case, num_layers=num_layers)) for num_layers in (4, 8))
    for num_layers in (case.num_layers, *range(case.num_layers - case.num_layers % 4, 3, -4)):
        num_weights = four + (eight - four) * (num_layers / 4 - 1)
        if num_weights * bytes_per_weight <= SHARE_FOR_WEIGHTS * num_bytes:
            return num_layers
    return 4


def make_model(case: Case, dtype: torch.dtype, device: str) -> Any:
    """The transformer, two-way."""
    return fill_weights(_make_empty(case), dtype, device)


def see_as(model: Any, mode: AttentionMode) -> Any:
    """The same weights, read two-way or one-way."""
    view = copy.copy(model)
    timestep = model.config.reference_timestep
    # What is read once for all steps is read at a timestep of its own.
    view.register_to_config(
        attention_mode=mode, reference_timestep=1.0 if mode == "cached" and timestep is None else timestep
    )
    return view


def share_weights(model: Any, given: StepInputs) -> Models:
    """One set of weights for all contestants, as several do not fit."""
    return Models(model, see_as(model, "joint"), see_as(model, "cached"), given)


def make_case_inputs(case: Case, dtype: torch.dtype, device: str) -> StepInputs:
    """Random inputs in a pipeline's layout, of the released models' size."""
    if case.family == "wan":
        return make_inputs(WAN_QUICK if case.is_quick else WAN_14B, dtype, device)
    config, random = case.to_config(), torch.Generator().manual_seed(1)
    frames = (config["sample_frames"] - 1) // 4 + 1
    grid = (frames, config["sample_height"], config["sample_width"])
    text = (config["max_text_seq_length"], config["text_embed_dim"])

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(device, dtype)

    return StepInputs(
        latents=draw(1, 16, *grid).float(),
        condition=draw(1, 16, *grid),
        positive=draw(1, *text),
        negative=draw(1, *text),
        image_embeds=None,
        reference=ReferenceInputs((draw(1, 32, *grid),), (draw(1, *text),)),
    )


def _count_weights(case: Case) -> int:
    return sum(weight.numel() for weight in _make_empty(case).parameters())


def _make_empty(case: Case) -> Any:
    kind: Any = WanVideoAsPromptTransformer if case.family == "wan" else CogVideoXVideoAsPromptTransformer
    with init_empty_weights(include_buffers=False):
        return kind(**case.to_config())
