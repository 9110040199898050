"""Materials and light for each layer of a textured scene; layers are changed in place where possible."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sememe.world.drawing import FloatImage
from sememe.world.materials import cover, desaturate, ground_relief, light_up, relief, remove_outline, round_off, soften
from sememe.world.scene import Backdrop, Finish

Closeness = NDArray[np.float32] | None
_GROUND_SIDE = 192  # pixels of the relief that is laid on the ground plane
_LAYER_CELLS = 3.2  # scene units that a layer covers from top to bottom


def finish_subject(pixels: FloatImage, finish: Finish) -> None:
    """Give the subject its material and a rounded shape."""
    rows, columns = pixels.shape[:2]
    remove_outline(pixels, 0.07 * rows / 2.7)
    desaturate(pixels, finish.saturation)
    cover(
        pixels, np.float32(finish.contrast) * relief(finish.subject, finish.variant, rows, columns, 2.0), finish.variant
    )
    round_off(pixels, finish.light)


def finish_sky(pixels: FloatImage, backdrop: Backdrop, finish: Finish, closeness: Closeness) -> FloatImage:
    """Soften the clouds, or the wall of a room, and vary their light."""
    density = pixels.shape[0] / _LAYER_CELLS
    pixels = soften(pixels, density * (0.02 if backdrop.kind == "room" else 0.09))
    return _finish(pixels, "clouds", finish, 0.6, 1)


def finish_pattern(pixels: FloatImage, backdrop: Backdrop, finish: Finish, closeness: Closeness) -> FloatImage:
    """Paint the pattern on a wall of the ground's material."""
    return soften(_finish(pixels, finish.ground, finish, 1.0, 1), finish.blur * pixels.shape[0] / _LAYER_CELLS)


def finish_ridge(pixels: FloatImage, backdrop: Backdrop, finish: Finish, closeness: Closeness) -> FloatImage:
    """Put the ridge in haze and a little out of focus."""
    pixels = _finish(pixels, finish.far, finish, 1.0, 2)
    air = np.array([*backdrop.sky, 1], np.float32) * pixels[..., 3:]
    pixels += np.float32(finish.haze) * (air - pixels)
    return soften(pixels, (0.01 + finish.blur) * pixels.shape[0] / _LAYER_CELLS)


def finish_ground(pixels: FloatImage, backdrop: Backdrop, finish: Finish, closeness: Closeness) -> FloatImage:
    """Lay the material on the ground, finer towards the horizon."""
    assert closeness is not None
    desaturate(pixels, finish.saturation)
    field = relief(finish.ground, finish.variant + 3, _GROUND_SIDE, _GROUND_SIDE, 8.0)
    laid = ground_relief(field, closeness, pixels.shape[1])
    cover(pixels, np.float32(1.3 * finish.contrast) * laid, finish.variant + 3)
    light_up(pixels, finish.light, 0.12)
    return pixels


def finish_foreground(pixels: FloatImage, backdrop: Backdrop, finish: Finish, closeness: Closeness) -> FloatImage:
    """Blur what is too close to the camera to be sharp."""
    return soften(_finish(pixels, "rock", finish, 0.8, 4), 0.025 * pixels.shape[0] / _LAYER_CELLS)


def _finish(pixels: FloatImage, material: str, finish: Finish, strength: float, place: int) -> FloatImage:
    rows, columns = pixels.shape[:2]
    seed = finish.variant + place
    desaturate(pixels, finish.saturation)
    field = relief(material, seed, rows, columns, _LAYER_CELLS)
    cover(pixels, np.float32(strength * finish.contrast) * field, seed)
    light_up(pixels, finish.light, 0.2)
    return pixels
