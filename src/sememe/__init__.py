"""Steer video generation by meaning.

The public names below are imported when they are first used, so that ``import sememe`` costs next to nothing and
``sememe --help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sememe.compute.placement import apply_offload, apply_storage
    from sememe.errors import (
        InputError,
        MissingExtraError,
        ModelError,
        OutputError,
        RecipeError,
        SememeError,
        VideoError,
    )
    from sememe.gen1.pipeline import Gen1Pipeline
    from sememe.semanticgen.pipeline import SemanticGenPipeline
    from sememe.video import (
        Clip,
        SheetRow,
        VideoLimits,
        contact_sheet,
        read_clip,
        read_image,
        write_clip,
        write_image,
    )
    from sememe.video_as_prompt.inputs import EncodedReference
    from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline
    from sememe.workflows.evaluate import EvaluationSettings, evaluate
    from sememe.workflows.train import resolve_training_recipe, train_recipe

__version__ = "0.1.0"

__all__ = [
    "Clip",
    "EncodedReference",
    "EvaluationSettings",
    "Gen1Pipeline",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "RecipeError",
    "SemanticGenPipeline",
    "SememeError",
    "SheetRow",
    "VideoAsPromptPipeline",
    "VideoError",
    "VideoLimits",
    "__version__",
    "apply_offload",
    "apply_storage",
    "contact_sheet",
    "evaluate",
    "read_clip",
    "read_image",
    "resolve_training_recipe",
    "train_recipe",
    "write_clip",
    "write_image",
]

_HOMES = {
    "Clip": "sememe.video",
    "EncodedReference": "sememe.video_as_prompt.inputs",
    "EvaluationSettings": "sememe.workflows.evaluate",
    "Gen1Pipeline": "sememe.gen1.pipeline",
    "InputError": "sememe.errors",
    "MissingExtraError": "sememe.errors",
    "ModelError": "sememe.errors",
    "OutputError": "sememe.errors",
    "RecipeError": "sememe.errors",
    "SemanticGenPipeline": "sememe.semanticgen.pipeline",
    "SememeError": "sememe.errors",
    "SheetRow": "sememe.video",
    "VideoAsPromptPipeline": "sememe.video_as_prompt.pipeline",
    "VideoError": "sememe.errors",
    "VideoLimits": "sememe.video",
    "apply_offload": "sememe.compute.placement",
    "apply_storage": "sememe.compute.placement",
    "contact_sheet": "sememe.video",
    "evaluate": "sememe.workflows.evaluate",
    "read_clip": "sememe.video",
    "read_image": "sememe.video",
    "resolve_training_recipe": "sememe.workflows.train",
    "train_recipe": "sememe.workflows.train",
    "write_clip": "sememe.video",
    "write_image": "sememe.video",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sememe' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
