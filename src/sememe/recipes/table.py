"""All recipes by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from sememe.errors import RecipeError
from sememe.recipes import small, smoke, tiny
from sememe.recipes.records import KINDS, Recipe

RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "tiny-autoencoder": tiny.tiny_autoencoder,
    "tiny-latents": tiny.tiny_latents,
    "tiny-backbone": tiny.tiny_backbone,
    "tiny-expert": tiny.tiny_expert,
    "tiny-expert-joint": tiny.tiny_expert_joint,
    "tiny-expert-leaky-captions": tiny.tiny_expert_leaky_captions,
    "tiny-expert-no-shared-scenes": tiny.tiny_expert_no_shared_scenes,
    "tiny-expert-half-blocks": tiny.tiny_expert_half_blocks,
    "tiny-expert-24-conditions": tiny.tiny_expert_24_conditions,
    "tiny-expert-single-targets": tiny.tiny_expert_single_targets,
    "tiny-released-expert": tiny.tiny_released_expert,
    "tiny-model": tiny.tiny_model,
    "small-autoencoder": small.small_autoencoder,
    "small-latents": small.small_latents,
    "small-backbone": small.small_backbone,
    "small-expert": small.small_expert,
    "small-model": small.small_model,
    "smoke-autoencoder": smoke.smoke_autoencoder,
    "smoke-latents": smoke.smoke_latents,
    "smoke-backbone": smoke.smoke_backbone,
    "smoke-expert": smoke.smoke_expert,
    "smoke-expert-joint": smoke.smoke_expert_joint,
    "smoke-model": smoke.smoke_model,
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name; `tiny_expert` is the same as `tiny-expert`.

    Raises:
        RecipeError: there is none; says which names are near.
    """
    wanted = name.strip().lower().replace("_", "-")
    if wanted in RECIPES:
        return RECIPES[wanted]()
    near = difflib.get_close_matches(wanted, RECIPES, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`sememe recipes` lists them"
    raise RecipeError(f"expected the name of a recipe, got {name!r}; {hint}")


def kind_of(recipe: Recipe) -> str:
    """What it makes: `autoencoder`, `latents`, `backbone`, `expert` or `model`."""
    return KINDS[type(recipe)]
