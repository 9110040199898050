"""The recipes of all systems: finding one, changing its settings, listing them."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from sememe.errors import RecipeError
from sememe.records import apply_overrides, flatten
from sememe.training.recipes import Recipe
from sememe.workflows.systems import SYSTEMS, kind_of, qualify_model

_VERBS = {"latents": "precompute", "model": "assemble"}
RecipeT = TypeVar("RecipeT")


@dataclass(frozen=True)
class RecipeEntry:
    """One recipe of the list, and the command that runs it."""

    name: str
    verb: str
    description: str


def recipes() -> dict[str, Callable[[], Recipe]]:
    """Return the functions that make the recipes of all systems, by name, in the order in which they are run."""
    found: dict[str, Callable[[], Recipe]] = {}
    for system in SYSTEMS.values():
        assert not found.keys() & system.recipes.keys(), "two systems have recipes of one name"
        found |= system.recipes
    return found


def list_recipes() -> list[RecipeEntry]:
    """Return all recipes, in the order in which they are run."""
    made = {name: make() for name, make in recipes().items()}
    verbs = {name: _VERBS.get(kind_of(recipe), "train") for name, recipe in made.items()}
    return [RecipeEntry(name, verbs[name], recipe.description) for name, recipe in made.items()]


def find_recipe(name: str) -> Recipe:
    """Return the recipe with this name; `tiny_expert` is the same as `tiny-expert`.

    Raises:
        RecipeError: There is none; the message names similar ones.
    """
    wanted = name.strip().lower().replace("_", "-")
    known = recipes()
    if wanted in known:
        return known[wanted]()
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`sememe recipes` lists them"
    raise RecipeError(f"expected the name of a recipe, got {name!r}; {hint}")


def resolve_recipe(name: str, overrides: Sequence[str], kind: type[RecipeT], verb: str) -> RecipeT:
    """Return the recipe with this name and some settings replaced.

    Args:
        name: Name of the recipe.
        overrides: Settings such as "training.learning_rate=3e-4".
        kind: Class of the recipes that the verb can run.
        verb: The command, for the message.

    Raises:
        RecipeError: There is no such recipe, or the verb does not run recipes of its kind.
        InputError: There is no such setting, or a value is not valid.
    """
    recipe = find_recipe(name)
    if not isinstance(recipe, kind):
        raise RecipeError(
            f"{recipe.name} is a recipe for {kind_of(recipe)}, which `sememe {verb}` does not run; "
            "`sememe recipes` says which verb does"
        )
    fixed = [text for text in overrides if text.partition("=")[0].strip() in {"name", "description"}]
    if fixed:
        raise RecipeError(f"a recipe's name and description cannot be set, got {fixed[0]!r}")
    resolved: Any = apply_overrides(recipe, overrides)
    models = {name: qualify_model(value, recipe) for name, value in vars(resolved).items() if isinstance(value, str)}
    return cast("RecipeT", replace(resolved, **models))


def list_recipe_settings(name: str) -> dict[str, str]:
    """Return the settings of a recipe by dotted key, as text.

    Raises:
        RecipeError: There is no such recipe.
    """
    settings = flatten(find_recipe(name))
    return {key: _text(value) for key, value in settings.items() if key not in {"name", "description"}}


def _text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{item}" for name, item in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
