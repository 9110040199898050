"""Steer video generation by meaning.

The public names below are imported when they are first used, so that ``import sememe`` costs next to nothing and
``sememe --help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sememe.errors import (
        InputError,
        MissingExtraError,
        ModelError,
        OutputError,
        RecipeError,
        SememeError,
        VideoError,
    )
    from sememe.video import Clip, VideoLimits, read_clip, read_image, write_clip, write_image
    from sememe.video_as_prompt.pipeline import VideoAsPromptPipeline

__version__ = "0.1.0"

__all__ = [
    "Clip",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "RecipeError",
    "SememeError",
    "VideoAsPromptPipeline",
    "VideoError",
    "VideoLimits",
    "__version__",
    "read_clip",
    "read_image",
    "write_clip",
    "write_image",
]

_HOMES = {
    "Clip": "sememe.video",
    "InputError": "sememe.errors",
    "MissingExtraError": "sememe.errors",
    "ModelError": "sememe.errors",
    "OutputError": "sememe.errors",
    "RecipeError": "sememe.errors",
    "SememeError": "sememe.errors",
    "VideoAsPromptPipeline": "sememe.video_as_prompt.pipeline",
    "VideoError": "sememe.errors",
    "VideoLimits": "sememe.video",
    "read_clip": "sememe.video",
    "read_image": "sememe.video",
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
