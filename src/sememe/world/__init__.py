"""The procedural world: scenes, conditions, captions, a renderer, and the oracle that it makes possible."""

from sememe.world.catalogue import conditions
from sememe.world.renderer import RenderedClip, render
from sememe.world.scene import Scene, random_scene

WORLD_VERSION = 1

__all__ = ["WORLD_VERSION", "RenderedClip", "Scene", "conditions", "random_scene", "render"]
