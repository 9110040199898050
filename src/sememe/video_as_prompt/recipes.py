"""The recipes of Video-As-Prompt by name, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sememe.training.recipes import Recipe
from sememe.video_as_prompt import recipes_cogvideox, recipes_small, recipes_smoke, recipes_tiny

RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "tiny-autoencoder": recipes_tiny.tiny_autoencoder,
    "tiny-latents": recipes_tiny.tiny_latents,
    "tiny-generations": recipes_tiny.tiny_generations,
    "tiny-backbone": recipes_tiny.tiny_backbone,
    "tiny-expert": recipes_tiny.tiny_expert,
    "tiny-expert-joint": recipes_tiny.tiny_expert_joint,
    "tiny-expert-leaky-captions": recipes_tiny.tiny_expert_leaky_captions,
    "tiny-expert-no-shared-scenes": recipes_tiny.tiny_expert_no_shared_scenes,
    "tiny-expert-half-blocks": recipes_tiny.tiny_expert_half_blocks,
    "tiny-expert-24-conditions": recipes_tiny.tiny_expert_24_conditions,
    "tiny-expert-single-targets": recipes_tiny.tiny_expert_single_targets,
    "tiny-released-expert": recipes_tiny.tiny_released_expert,
    "tiny-model": recipes_tiny.tiny_model,
    "small-autoencoder": recipes_small.small_autoencoder,
    "small-latents": recipes_small.small_latents,
    "small-backbone": recipes_small.small_backbone,
    "small-expert": recipes_small.small_expert,
    "small-model": recipes_small.small_model,
    "cogvideox-latents": recipes_cogvideox.cogvideox_latents,
    "cogvideox-expert": recipes_cogvideox.cogvideox_expert,
    "smoke-cogvideox-latents": recipes_cogvideox.smoke_cogvideox_latents,
    "smoke-cogvideox-expert": recipes_cogvideox.smoke_cogvideox_expert,
    "smoke-autoencoder": recipes_smoke.smoke_autoencoder,
    "smoke-latents": recipes_smoke.smoke_latents,
    "smoke-backbone": recipes_smoke.smoke_backbone,
    "smoke-expert": recipes_smoke.smoke_expert,
    "smoke-expert-joint": recipes_smoke.smoke_expert_joint,
    "smoke-model": recipes_smoke.smoke_model,
}
