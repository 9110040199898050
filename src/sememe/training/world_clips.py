"""Which scene and condition the n-th clip of the training set shows: a pure function of n.

Every scene is filmed under several conditions, so that one batch can hold the same scene under different ones.
Scenes for evaluation start at `EVALUATION_SEED`; training never reaches it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sememe.world import RenderedClip, conditions, random_scene, render

EVALUATION_SEED = 10_000_000


@dataclass(frozen=True, slots=True)
class WorldItem:
    """One clip to render: the scene's seed and the condition's name."""

    scene: int
    condition: str


def world_item(index: int, clips_per_scene: int = 8) -> WorldItem:
    """The scene and condition of clip number `index`.

    Conditions are dealt out of a deck that is shuffled for every scene, so the counts stay even and one scene never
    shows a condition twice (as long as `clips_per_scene` is at most the number of conditions).
    """
    scene, place = divmod(index, clips_per_scene)
    assert scene < EVALUATION_SEED, "training would reach the scenes kept for evaluation"
    deck = np.random.Generator(np.random.PCG64(scene + 1)).permutation(len(conditions()))
    return WorldItem(scene, conditions()[int(deck[place])])


def render_item(item: WorldItem, *, num_frames: int, size: int | tuple[int, int], fps: float = 8) -> RenderedClip:
    """Film the item."""
    return render(random_scene(item.scene), item.condition, num_frames=num_frames, size=size, fps=fps)
