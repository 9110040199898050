"""The procedural world: scenes, conditions, captions, a renderer, and the oracle that it makes possible."""

from sememe.world.catalogue import can_show, conditions
from sememe.world.renderer import RenderedClip, render
from sememe.world.repainting import repaint
from sememe.world.scene import EVALUATION_SEED, Scene, random_scene
from sememe.world.scripts import RenderedScript, RenderedSpan, iter_script, render_script
from sememe.world.stories import Script, can_follow, random_script

WORLD_VERSION = 2

__all__ = [
    "EVALUATION_SEED",
    "WORLD_VERSION",
    "RenderedClip",
    "RenderedScript",
    "RenderedSpan",
    "Scene",
    "Script",
    "can_follow",
    "can_show",
    "conditions",
    "iter_script",
    "random_scene",
    "random_script",
    "render",
    "render_script",
    "repaint",
]
