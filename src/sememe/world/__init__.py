"""The procedural world: scenes, conditions, captions, a renderer, and the oracle that it makes possible."""

from sememe.world.catalogue import can_show, conditions
from sememe.world.renderer import RenderedClip, render
from sememe.world.scene import EVALUATION_SEED, Scene, random_scene

WORLD_VERSION = 2

__all__ = [
    "EVALUATION_SEED",
    "WORLD_VERSION",
    "RenderedClip",
    "Scene",
    "can_show",
    "conditions",
    "random_scene",
    "render",
]
