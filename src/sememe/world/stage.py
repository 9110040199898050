"""A scene as layers: flat pictures at their distances, ready to be filmed.

Distances are in scene units from the camera, the subject stands at 1. The ground is a plane: one over its distance
grows linearly from the horizon down, so a sideways camera move is an exact shear of its layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sememe.world.backdrops import draw_far, draw_foreground, draw_ground, draw_sky
from sememe.world.drawing import Canvas, FloatImage
from sememe.world.scene import Scene
from sememe.world.subjects import draw_subject

SKY_DISTANCE = 6.0
FAR_DISTANCE = 3.2
GROUND_NEAR = 0.85
SUBJECT_DISTANCE = 1.0
FOREGROUND_DISTANCE = 0.7
MARGIN = 1.6  # layers reach this many times beyond the picture
SUBJECT_REACH = 1.35  # the subject's own canvas, in half heights of the subject


@dataclass(frozen=True, slots=True)
class Layer:
    """A flat picture at a distance.

    `pixels` is (height, width, 4) float32 in 0..1, premultiplied; `reach_x`, `reach_y` are half its extent in scene
    units; `distance` in scene units; `horizon` is set for the ground plane alone.
    """

    pixels: FloatImage
    reach_x: float
    reach_y: float
    distance: float
    horizon: float | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """All layers of a scene at one picture size, far to near."""

    height: int
    width: int
    backdrop: tuple[Layer, ...]
    subject: Layer
    subject_x: float
    subject_y: float
    subject_size: float
    foreground: Layer | None

    @property
    def density(self) -> float:
        """Pixels per scene unit."""
        return self.height / 2

    @property
    def aspect(self) -> float:
        """Width over height of the picture."""
        return self.width / self.height


@lru_cache(maxsize=64)
def build_stage(scene: Scene, height: int, width: int) -> Stage:
    """Draw every layer of `scene` for pictures of `height` by `width` pixels."""
    density = height / 2
    supersample = 3 if height <= 96 else 2
    reach_x, reach_y = MARGIN * width / height, MARGIN
    backdrop = scene.backdrop
    layers = []
    for draw, distance in ((draw_sky, SKY_DISTANCE), (draw_far, FAR_DISTANCE), (draw_ground, FAR_DISTANCE)):
        canvas = Canvas(reach_x, reach_y, density, supersample)
        draw(canvas, backdrop)
        pixels = canvas.finish()
        if pixels[..., 3].any():
            horizon = backdrop.horizon if draw is draw_ground else None
            layers.append(Layer(pixels, reach_x, reach_y, distance, horizon))
    foreground = None
    if backdrop.foreground != "none":
        canvas = Canvas(reach_x, reach_y, density, supersample)
        draw_foreground(canvas, backdrop)
        foreground = Layer(canvas.finish(), reach_x, reach_y, FOREGROUND_DISTANCE)
    size = scene.subject.size
    canvas = Canvas(SUBJECT_REACH, SUBJECT_REACH, density * size * 1.25, supersample + 1)
    draw_subject(canvas, scene.subject)
    subject = Layer(canvas.finish(), SUBJECT_REACH, SUBJECT_REACH, SUBJECT_DISTANCE)
    return Stage(height, width, tuple(layers), subject, scene.subject.x, scene.subject.y, size, foreground)


def ground_closeness(horizon: float, y: NDArray[np.float32]) -> NDArray[np.float32]:
    """One over the distance of the ground plane at the height `y` of its layer, per scene unit."""
    slope = (1 / GROUND_NEAR - 1 / FAR_DISTANCE) / (1 - horizon)
    result: NDArray[np.float32] = np.maximum(1 / FAR_DISTANCE + slope * (y - horizon), 1 / FAR_DISTANCE).astype(
        np.float32
    )
    return result
