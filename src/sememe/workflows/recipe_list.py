"""What recipes there are, for people."""

from collections.abc import Mapping
from dataclasses import dataclass

from sememe.records import flatten
from sememe.video_as_prompt.recipes import RECIPES, find_recipe, kind_of

_VERBS = {"latents": "precompute", "model": "assemble"}


@dataclass(frozen=True)
class RecipeEntry:
    """One recipe of the list.

    Attributes:
        name: by which it is run.
        kind: what it makes: `autoencoder`, `latents`, `backbone`, `expert` or `model`.
        verb: the command that runs it: `train`, `precompute` or `assemble`.
        description: what it makes, in words.
    """

    name: str
    kind: str
    verb: str
    description: str


def list_recipes() -> list[RecipeEntry]:
    """All recipes, in the order in which they are run."""
    entries = []
    for name in RECIPES:
        recipe = find_recipe(name)
        kind = kind_of(recipe)
        entries.append(RecipeEntry(name, kind, _VERBS.get(kind, "train"), recipe.description))
    return entries


def list_recipe_settings(name: str) -> dict[str, str]:
    """The settings of a recipe by dotted key, as text. Raises `RecipeError` if there is no such recipe."""
    settings = flatten(find_recipe(name))
    return {key: _text(value) for key, value in settings.items() if key not in {"name", "description"}}


def _text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{item}" for name, item in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
