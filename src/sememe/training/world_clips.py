"""Which scene and condition the n-th clip of the training set shows: a pure function of n.

Every scene is filmed under several conditions, so that one batch can hold the same scene under different ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sememe.world import EVALUATION_SEED, RenderedClip, Scene, random_scene, render
from sememe.world.catalogue import CATALOGUE
from sememe.world.scene import PHOTOGRAPH_SHARE


@dataclass(frozen=True, slots=True)
class WorldItem:
    """One clip to render: the scene's seed and the condition's name."""

    scene: int
    condition: str


def world_item(index: int, clips_per_scene: int = 8) -> WorldItem:
    """The scene and condition of clip number `index`.

    Conditions are dealt from a deck that is shuffled for every scene. One scene never shows a condition twice, as long
    as `clips_per_scene` is at most the number of conditions that apply to it; beyond that the deck starts over.
    """
    scene, place = divmod(index, clips_per_scene)
    assert scene < EVALUATION_SEED, "training would reach the scenes kept for evaluation"
    deck = _shuffle(random_scene(scene))
    return WorldItem(scene, deck[place % len(deck)])


@lru_cache(maxsize=64)
def _shuffle(scene: Scene) -> tuple[str, ...]:
    """Shuffle the conditions that apply to a scene.

    Whole photographs show only those that need no layers. Everywhere else these come later in the deck by as much, so
    that all conditions are dealt equally often.
    """
    deck = sorted(entry.name for entry in CATALOGUE if entry.applies_to(scene))
    layered = {entry.name for entry in CATALOGUE if entry.needs_layers}
    odds = 1 - PHOTOGRAPH_SHARE * len(CATALOGUE) / (len(CATALOGUE) - len(layered))
    weights = np.array([1.0 if name in layered or scene.subject is None else odds for name in deck])
    draws = np.random.Generator(np.random.PCG64(scene.seed + 1)).random(len(deck))
    # Sampling without replacement by weight (Efraimidis and Spirakis, 2006).
    return tuple(deck[place] for place in np.argsort(-(draws ** (1 / weights))))


def render_item(item: WorldItem, *, num_frames: int, size: int | tuple[int, int], fps: float = 8) -> RenderedClip:
    """Film the item."""
    return render(random_scene(item.scene), item.condition, num_frames=num_frames, size=size, fps=fps)
