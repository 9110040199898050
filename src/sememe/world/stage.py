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
from sememe.world.finishes import (
    finish_foreground,
    finish_ground,
    finish_pattern,
    finish_ridge,
    finish_sky,
    finish_subject,
)
from sememe.world.materials import soften
from sememe.world.photographs import crop_pixels
from sememe.world.scene import LIGHTS, PATTERN_BACKDROPS, Backdrop, Crop, Finish, Scene
from sememe.world.subjects import draw_subject

SKY_DISTANCE = 6.0
FAR_DISTANCE = 3.2
GROUND_NEAR = 0.85
SUBJECT_DISTANCE = 1.0
FOREGROUND_DISTANCE = 0.7
MARGIN = 1.6  # layers reach this many times beyond the picture
_SUBJECT_LIGHT = 0.6  # share of the light's effect on the subject, which stands out at night
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
    """All layers of a scene at one picture size, far to near; `has_shadow` is about the subject."""

    height: int
    width: int
    backdrop: tuple[Layer, ...]
    subject: Layer
    subject_x: float
    subject_y: float
    subject_size: float
    foreground: Layer | None
    has_shadow: bool

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
    light = scene.light or "day"
    if isinstance(scene.backdrop, Crop):
        photograph = _photograph_layer(scene.backdrop, scene.finish, height, width)
        backdrop: tuple[Layer, ...] = (photograph,)
        foreground = None
    else:
        backdrop, foreground = _draw_backdrop(scene.backdrop, scene.finish, height, width)
    for layer in backdrop if foreground is None else (*backdrop, foreground):
        _put_in_light(layer.pixels, light, 1.0)
    if scene.subject is None:
        nobody = Layer(np.zeros((2, 2, 4), np.float32), SUBJECT_REACH, SUBJECT_REACH, SUBJECT_DISTANCE)
        return Stage(height, width, backdrop, nobody, 0.0, 0.0, 0.5, None, has_shadow=False)
    size = scene.subject.size
    canvas = Canvas(SUBJECT_REACH, SUBJECT_REACH, height / 2 * size * 1.25, _supersample(height) + 1)
    draw_subject(canvas, scene.subject)
    pixels = canvas.finish()
    if scene.finish is not None:
        finish_subject(pixels, scene.finish)
    _put_in_light(pixels, light, _SUBJECT_LIGHT)
    subject = Layer(pixels, SUBJECT_REACH, SUBJECT_REACH, SUBJECT_DISTANCE)
    place = scene.subject.x, scene.subject.y, size
    return Stage(height, width, backdrop, subject, *place, foreground, has_shadow=scene.finish is not None)


def _draw_backdrop(
    backdrop: Backdrop, finish: Finish | None, height: int, width: int
) -> tuple[tuple[Layer, ...], Layer | None]:
    """Draw the layers behind the subject, far to near, and the one in front of it if there is one."""
    reach_x, reach_y = MARGIN * width / height, MARGIN
    ground = finish_pattern if backdrop.kind in PATTERN_BACKDROPS else finish_sky
    parts = (
        (draw_sky, ground, SKY_DISTANCE),
        (draw_far, finish_ridge, FAR_DISTANCE),
        (draw_ground, finish_ground, FAR_DISTANCE),
        (draw_foreground, finish_foreground, FOREGROUND_DISTANCE),
    )
    layers = []
    for draw, refine, distance in parts:
        canvas = Canvas(reach_x, reach_y, height / 2, _supersample(height))
        draw(canvas, backdrop)
        pixels = canvas.finish()
        if not pixels[..., 3].any():
            continue
        horizon = backdrop.horizon if draw is draw_ground else None
        if finish is not None:
            closeness = None if horizon is None else ground_closeness(horizon, row_heights(pixels, reach_y))
            pixels = refine(pixels, backdrop, finish, closeness)
        layers.append(Layer(pixels, reach_x, reach_y, distance, horizon))
    foreground = layers.pop() if layers[-1].distance == FOREGROUND_DISTANCE else None
    return tuple(layers), foreground


def _photograph_layer(crop: Crop, finish: Finish | None, height: int, width: int) -> Layer:
    """Make a photograph the farthest layer, a little out of focus behind a subject."""
    density = height / 2
    reach_x, reach_y = crop.reach * width / height, crop.reach
    pixels = crop_pixels(crop, round(2 * reach_y * density), round(2 * reach_x * density))
    if finish is not None:
        pixels = soften(pixels, finish.blur * density)
    return Layer(pixels, reach_x, reach_y, SKY_DISTANCE)


def _put_in_light(pixels: FloatImage, light: str, strength: float) -> None:
    """Change a premultiplied layer's colours by one of `LIGHTS`, and not what it covers."""
    if light != "day":
        gains, white = LIGHTS[light]
        factors = 1 - np.float32(strength) * (1 - np.array(gains, np.float32))
        pixels[..., :3] *= factors
        pixels[..., :3] += np.float32(strength * white) * pixels[..., 3:]


def _supersample(height: int) -> int:
    return 3 if height <= 96 else 2


def row_heights(pixels: FloatImage, reach_y: float) -> NDArray[np.float32]:
    """Return the y of a layer's rows in scene units."""
    rows = pixels.shape[0]
    return (np.arange(rows, dtype=np.float32) + 0.5) / rows * 2 * reach_y - reach_y


def ground_closeness(horizon: float, y: NDArray[np.float32]) -> NDArray[np.float32]:
    """One over the distance of the ground plane at the height `y` of its layer, per scene unit."""
    slope = (1 / GROUND_NEAR - 1 / FAR_DISTANCE) / (1 - horizon)
    result: NDArray[np.float32] = np.maximum(1 / FAR_DISTANCE + slope * (y - horizon), 1 / FAR_DISTANCE).astype(
        np.float32
    )
    return result
