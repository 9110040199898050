"""Renders of a scene under all conditions, made once per scene."""

from collections.abc import Sequence
from functools import lru_cache

from sememe.evaluation.oracle import Oracle
from sememe.video import Clip
from sememe.world import can_show, random_scene, render


class SceneOracles:
    """Oracles of scenes at one size and length.

    Args:
        names: the conditions that count as candidates, in scenes that can show them.
        num_frames: Frames of each clip.
        height: pixels.
        width: pixels.
        fps: frame rate of renders.
        keep: number of scenes whose oracle is kept for the next row, about 2 MB each at 17 frames.
    """

    def __init__(
        self, names: Sequence[str], num_frames: int, height: int, width: int, fps: float, *, keep: int = 64
    ) -> None:
        self.names = tuple(names)
        self.num_frames, self.height, self.width, self.fps = num_frames, height, width, fps
        self._oracle = lru_cache(maxsize=keep)(self._build)

    def oracle(self, scene: int) -> Oracle:
        """Return the oracle of the scene with this seed."""
        return self._oracle(scene)

    def film(self, scene: int, condition: str | None) -> Clip:
        """Render the scene with this seed."""
        size = (self.height, self.width)
        shot = render(random_scene(scene), condition, num_frames=self.num_frames, size=size, fps=self.fps)
        return shot.clip

    def caption(self, scene: int, condition: str) -> str:
        """Return the full caption of a render."""
        size = (self.height, self.width)
        return render(random_scene(scene), condition, num_frames=2, size=size, fps=self.fps).full_caption

    def _build(self, scene: int) -> Oracle:
        record = random_scene(scene)
        return Oracle({name: self.film(scene, name) for name in self.names if can_show(record, name)})
