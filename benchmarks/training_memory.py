"""What a GPU needs for a training at the size of Wan2.1: `python -m benchmarks.training_memory`.

Networks run forward and backward on the meta device at the length and size of their recipes, so that nothing is
computed. Weights, gradients and the two moments of AdamW count 4 bytes a number each; activations are counted in
bfloat16, by a run whose networks are in bfloat16, for one clip. Blocks are alike: two and three of them are measured,
and the difference stands for each of the others. That is what a GPU needs that holds all of it.

An expert is counted without activations, for several numbers of GPUs over which its model is spread: 2 bytes for each
frozen number of a linear layer or convolution, in bfloat16, 4 for each other frozen one, and 20 for each trained one,
whose average is kept too. The teacher of a distillation comes on top of it: whole on every GPU, and on a single one
without the backbone, which it shares with its student.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from diffusers import WanTransformer3DModel
from torch import nn
from torch.nn import functional

from sememe.compute.rehearsal import track_memory
from sememe.compute.strategy import GIGABYTE
from sememe.semanticgen.clocks import LatentClock, SliceClock
from sememe.semanticgen.compressor import SemanticCompressor
from sememe.semanticgen.network_renderer import SemanticGenTransformer
from sememe.semanticgen.recipes import (
    wan_1_3b_planner,
    wan_1_3b_renderer,
    wan_1_3b_semantic_latents,
    wan_14b_planner,
    wan_14b_renderer,
)
from sememe.semanticgen.stage_settings import PlannerNetwork, RendererRecipe
from sememe.semanticgen.stages import make_planner
from sememe.semanticgen.windows import SliceShape, make_layout
from sememe.training.frozen_weights import find_rounded
from sememe.training.sharding import count_kept
from sememe.video_as_prompt.network_wan import WanVideoAsPromptTransformer

TOWERS = {"3B": 2048, "7B": 3584, "72B": 8192}
"""Widths of the features of Qwen2.5-VL's towers."""
_BYTES_PER_NUMBER = 16  # weight, gradient and two moments in float32
_BYTES_WITH_AVERAGE, _BYTES_OF_WEIGHT, _BYTES_OF_ROUNDED = 20, 4, 2
_TEXT_DIM, _TEXT_TOKENS, _CHANNELS, _FEATURE_PIXELS = 4096, 512, 16, 28


@dataclass(frozen=True)
class Need:
    """Memory of one GPU.

    Attributes:
        num_parameters: Numbers that are trained.
        state_bytes: Weights, gradients and moments.
        activation_bytes: What a forward and backward of one clip takes beside them.
    """

    num_parameters: int
    state_bytes: int
    activation_bytes: int


def measure_renderer(recipe: RendererRecipe, network: PlannerNetwork, feature_dim: int) -> Need:
    """Measure renderer and compressor for a clip of the recipe's latents.

    Args:
        recipe: Recipe.
        network: Size of the backbone, which is that of the planner beside it.
        feature_dim: Width of the encoder's features.
    """
    clips, dim = wan_1_3b_semantic_latents().clips, recipe.compressor.semantic_dim
    clock, slices = LatentClock(recipe.temporal_ratio, recipe.fps), SliceClock(1.6)
    frames, rows, columns = 1 + (clips.num_frames - 1) // recipe.temporal_ratio, clips.height // 8, clips.width // 8
    plan = (slices.count_slices(clips.num_frames / clips.fps), *_find_grid(clips.height, clips.width))
    layout = make_layout(
        clock,
        (frames, rows // 2, columns // 2),
        SliceShape(slices.times(plan[0]), *plan[1:]),
        window_seconds=recipe.settings.window_seconds,
    )
    with torch.device("meta"):
        backbone = WanTransformer3DModel(
            num_attention_heads=network.num_attention_heads,
            attention_head_dim=network.attention_head_dim,
            text_dim=_TEXT_DIM,
            ffn_dim=network.ffn_dim,
            num_layers=network.num_layers,
        )
        compressor = SemanticCompressor(feature_dim, dim, recipe.compressor.hidden_dim, recipe.compressor.num_layers)
        renderer = SemanticGenTransformer.from_backbone(backbone, dim)
        latents = torch.empty(1, _CHANNELS, frames, rows, columns, dtype=torch.bfloat16)
        features = torch.empty(1, *plan, feature_dim, dtype=torch.bfloat16)
    if recipe.training.checkpoints_activations:
        renderer.enable_gradient_checkpointing()

    def run() -> Any:
        return renderer(latents, _timestep(), (_text(),), semantic=compressor(features).mean, layout=layout).sample

    return _measure(run, renderer.train(), compressor.train())


def measure_planner(semantic_dim: int, network: PlannerNetwork) -> Need:
    """Measure the planner for a clip of the recipe's features."""
    clips, slices = wan_1_3b_semantic_latents().clips, SliceClock(1.6)
    shape = (slices.count_slices(clips.num_frames / clips.fps), *_find_grid(clips.height, clips.width))
    layout = make_layout(LatentClock.of_slices(slices), shape)
    with torch.device("meta"):
        planner = make_planner(network, semantic_dim, _TEXT_DIM)
        plans = torch.empty(1, semantic_dim, *shape, dtype=torch.bfloat16)
    return _measure(lambda: planner(plans, _timestep(), (_text(),), layout=layout).sample, planner.train())


def _measure(run: Any, *networks: Any) -> Need:
    numbers = sum(parameter.numel() for network in networks for parameter in network.parameters())
    for network in networks:
        network.to(torch.bfloat16)
        for parameter in network.parameters():
            # Gradients are counted with the state, so they are there before the run.
            parameter.grad = torch.zeros_like(parameter)
    # Replaced, because torch's function modes are off on the way back, where checkpointed blocks attend once more.
    with track_memory() as memory, patch.object(functional, "scaled_dot_product_attention", _attend):
        run().sum().backward()
    return Need(numbers, _BYTES_PER_NUMBER * numbers, memory.peak_bytes)


class _Attend(torch.autograd.Function):
    """Allocates what a fused kernel does, forward and backward; a meta tensor would get the whole table of scores."""

    @staticmethod
    def forward(context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(query)
        context.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(context: Any, *_gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(each) for each in context.saved_tensors[:3])


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_options: Any) -> Any:
    return _Attend.apply(query, key, value)


def _timestep() -> torch.Tensor:
    return torch.empty(1, device="meta")


def _text() -> torch.Tensor:
    return torch.empty(1, _TEXT_TOKENS, _TEXT_DIM, dtype=torch.bfloat16, device="meta")


def _find_grid(height: int, width: int) -> tuple[int, int]:
    return int(height / _FEATURE_PIXELS + 0.5), int(width / _FEATURE_PIXELS + 0.5)


def extend(measure: Callable[[PlannerNetwork], Need], network: PlannerNetwork) -> Need:
    """Return what a network needs, by what it needs with two and with three blocks."""
    two, three = (measure(replace(network, num_layers=count)) for count in (2, 3))
    numbers, state, activations = (
        getattr(two, name) + (network.num_layers - 2) * (getattr(three, name) - getattr(two, name))
        for name in ("num_parameters", "state_bytes", "activation_bytes")
    )
    return Need(numbers, state, activations)


def list_needs() -> dict[str, Need]:
    """Measure all recipes at this scale; the renderers with every tower."""
    needs = {}
    for renderer, planner in ((wan_1_3b_renderer(), wan_1_3b_planner()), (wan_14b_renderer(), wan_14b_planner())):
        for tower, width in TOWERS.items():
            measure = partial(measure_renderer, renderer, feature_dim=width)
            needs[f"{renderer.name}, tower {tower}"] = extend(measure, planner.network)
        measure = partial(measure_planner, renderer.compressor.semantic_dim)
        needs[planner.name] = extend(measure, planner.network)
    return needs


def make_expert() -> WanVideoAsPromptTransformer:
    """Make Wan2.1-I2V-14B with an expert in every fourth block, without values, as it is trained."""
    with torch.device("meta"):
        backbone = WanTransformer3DModel(
            num_attention_heads=40,
            attention_head_dim=128,
            in_channels=36,
            text_dim=_TEXT_DIM,
            ffn_dim=13824,
            num_layers=40,
            image_dim=1280,
            added_kv_proj_dim=5120,
        )
        model: WanVideoAsPromptTransformer = WanVideoAsPromptTransformer.from_backbone(backbone, range(0, 40, 4))
    model.freeze_backbone()
    return model


def count_state(network: nn.Module, shard: int) -> int:
    """Count the bytes that one of `shard` GPUs keeps of a network, and of what goes with its trained parameters."""
    kept = count_kept(network, shard)
    frozen = [name for name, each in network.named_parameters() if not each.requires_grad]
    sizes = dict.fromkeys(kept, _BYTES_WITH_AVERAGE) | dict.fromkeys(frozen, _BYTES_OF_WEIGHT)
    sizes |= dict.fromkeys(find_rounded(network, [name for name in frozen if "expert" not in name]), _BYTES_OF_ROUNDED)
    return sum(count * sizes[name] for name, count in kept.items())


def count_teacher(network: WanVideoAsPromptTransformer, shard: int) -> int:
    """Count the bytes of the teacher of such an expert on one of `shard` GPUs, all of which is frozen."""
    own = dict(network.named_parameters() if shard > 1 else network.expert_named_parameters())
    rounded = find_rounded(network, own)
    return sum(
        each.numel() * (_BYTES_OF_ROUNDED if name in rounded else _BYTES_OF_WEIGHT) for name, each in own.items()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m benchmarks.training_memory", description=__doc__).parse_args(arguments)
    expert = make_expert()
    for shard in (1, 8, 48):
        state, teacher = count_state(expert, shard) / GIGABYTE, count_teacher(expert, shard) / GIGABYTE
        print(
            f"wan-14b with ten experts on {shard:2} GPUs: {state:6.1f} GB of state each, "
            f"{state + teacher:6.1f} GB with a teacher"
        )
    for name, need in list_needs().items():
        state, activations = need.state_bytes / GIGABYTE, need.activation_bytes / GIGABYTE
        print(
            f"{name:<28} {need.num_parameters / 1e9:6.2f} G parameters, {state:6.1f} GB of state, "
            f"{activations:6.1f} GB of activations, {state + activations:6.1f} GB in all"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
