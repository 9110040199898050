"""The systems, by name and by model or recipe; no other module lists them."""

from collections.abc import Mapping
from pathlib import Path

from sememe.checkpoints.headers import read_json
from sememe.checkpoints.zoo import qualify_name
from sememe.errors import ModelError
from sememe.gen1.system import GEN1
from sememe.semanticgen.system import SEMANTICGEN
from sememe.system import StageSpec, System
from sememe.training.recipes import ArraysRecipe, ModelRecipe, Recipe, TrainingRecipe
from sememe.video_as_prompt.system import VIDEO_AS_PROMPT

SYSTEMS: Mapping[str, System] = {system.name: system for system in (VIDEO_AS_PROMPT, SEMANTICGEN, GEN1)}


def find_system(pipeline_name: object) -> System:
    """Return the system of a pipeline, by the class name in `model_index.json`.

    Raises:
        ModelError: No system has such a pipeline.
    """
    for system in SYSTEMS.values():
        if system.pipeline_name == pipeline_name:
            return system
    known = ", ".join(system.pipeline_name for system in SYSTEMS.values())
    raise ModelError(f"expected a model of one of the classes {known}, got {pipeline_name}")


def find_model(name: str) -> System:
    """Return the system of a model, by the name of a built-in one or the folder; Video-As-Prompt where neither says it.

    `tiny` alone, released models and stock ones are Video-As-Prompt's.
    """
    owner = name.partition("/")[0]
    if owner in SYSTEMS and qualify_name(name.partition("/")[2], owner) == name:
        return SYSTEMS[owner]
    index = Path(name) / "model_index.json"
    found = read_json(index).get("_class_name") if index.is_file() else None
    return next((system for system in SYSTEMS.values() if system.pipeline_name == found), VIDEO_AS_PROMPT)


def find_stage(recipe: TrainingRecipe) -> StageSpec:
    """Return the stage that a recipe trains."""
    return _stages()[type(recipe)][1]


def find_model_system(recipe: ModelRecipe) -> System:
    """Return the system of a recipe for a whole model."""
    return next(system for system in SYSTEMS.values() if system.model and system.model.recipe is type(recipe))


def kind_of(recipe: Recipe) -> str:
    """Return what a recipe makes: "latents", "model", or the name of a stage."""
    if isinstance(recipe, ArraysRecipe):
        return "latents"
    if isinstance(recipe, ModelRecipe):
        return "model"
    return _stages()[type(recipe)][0]


def qualify_model(name: str, recipe: Recipe) -> str:
    """Return the full name of a built-in model: a recipe's "tiny" is that of the recipe's own system."""
    systems = (system.name for system in SYSTEMS.values() if recipe.name in system.recipes)
    return next((qualify_name(name, system) for system in systems), name)


def _stages() -> dict[type, tuple[str, StageSpec]]:
    return {stage.recipe: (name, stage) for system in SYSTEMS.values() for name, stage in system.stages.items()}
