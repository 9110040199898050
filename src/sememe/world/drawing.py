"""A canvas in scene coordinates over OpenCV's anti-aliased polygons.

A `Canvas` covers x from -extent_x to extent_x and y from -extent_y to extent_y; it is drawn at a multiple of its
final density and averaged down once, so edges are smooth at any size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from sememe.world.scene import Color

FloatImage = NDArray[np.float32]
Points = NDArray[np.float64]

_TURN = np.linspace(0, 2 * np.pi, 33)[:-1]
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


class Canvas:
    """An RGBA picture that is drawn on in scene coordinates."""

    def __init__(self, extent_x: float, extent_y: float, density: float, supersample: int) -> None:
        """Args:
        extent_x: half the width covered, in scene units.
        extent_y: half the height covered, in scene units.
        density: pixels per scene unit of the finished layer.
        supersample: how many times finer the drawing is.
        """
        self.width = max(1, round(2 * extent_x * density))
        self.height = max(1, round(2 * extent_y * density))
        self._supersample = supersample
        self._scale = density * supersample
        self._origin = np.array([extent_x, extent_y]) * self._scale
        self.pixels = np.zeros((self.height * supersample, self.width * supersample, 4), np.uint8)

    def fill(self, color: Color) -> None:
        """Cover everything with one colour."""
        self._words()[:] = np.array(_bytes(color), np.uint8).view(np.uint32)

    def gradient(self, top: Color, bottom: Color) -> None:
        """Cover everything with a vertical blend from `top` to `bottom`."""
        rows = np.linspace(0.0, 1.0, len(self.pixels), dtype=np.float32)[:, None]
        blend = (1 - rows) * np.asarray(_bytes(top), np.float32) + rows * np.asarray(_bytes(bottom), np.float32)
        self._words()[:] = blend.astype(np.uint8).view(np.uint32)

    def polygon(self, points: Points | Sequence[tuple[float, float]], color: Color) -> None:
        """Fill a polygon given by its corners (n, 2)."""
        cv2.fillPoly(self.pixels, [self._to_pixels(points)], _bytes(color), shift=4)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, color: Color) -> None:
        """Fill an ellipse."""
        self.polygon(_CIRCLE * (radius_x, radius_y) + (x, y), color)

    def rectangle(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        """Fill an upright rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], color)

    def line(self, points: Points | Sequence[tuple[float, float]], width: float, color: Color) -> None:
        """Draw an open line of the given width."""
        thickness = max(1, round(width * self._scale))
        cv2.polylines(self.pixels, [self._to_pixels(points)], False, _bytes(color), thickness, cv2.LINE_8, shift=4)

    def copy(self) -> Canvas:
        """The same canvas with pixels of its own."""
        result = copy.copy(self)
        result.pixels = self.pixels.copy()
        return result

    def take_inside(self, points: Points | Sequence[tuple[float, float]], other: Canvas) -> None:
        """Take over what `other`, a canvas of the same extent, shows inside a polygon."""
        inside = np.zeros(self.pixels.shape[:2], np.uint8)
        cv2.fillPoly(inside, [self._to_pixels(points)], 255, shift=4)
        np.copyto(self._words(), other._words(), where=inside > 0)

    def finish(self) -> FloatImage:
        """The layer, averaged down: (height, width, 4) float32 in 0..1, colour premultiplied by alpha."""
        small = cv2.resize(self.pixels, (self.width, self.height), interpolation=cv2.INTER_AREA)
        result: FloatImage = np.multiply(small, np.float32(1 / 255), dtype=np.float32)
        return result

    def _words(self) -> NDArray[np.uint32]:
        """The pixels as one number each, (height, width): several times faster to copy than four bytes."""
        return self.pixels.view(np.uint32)[..., 0]

    def _to_pixels(self, points: Points | Sequence[tuple[float, float]]) -> NDArray[np.int32]:
        scaled = np.asarray(points, np.float64) * self._scale + self._origin
        return np.rint(scaled * 16).astype(np.int32)


def outline(kind: str, wobble: int) -> Points:
    """The silhouette `kind` as a polygon (n, 2) within the unit square from -1 to 1."""
    turn = np.linspace(0, 2 * np.pi, 49)[:-1]
    cos, sin = np.cos(turn), np.sin(turn)
    radius = np.ones_like(turn)
    if kind == "box":
        return np.stack([np.sign(cos) * np.abs(cos) ** 0.3, np.sign(sin) * np.abs(sin) ** 0.3], axis=1) * 0.92
    if kind == "star":
        corner = np.arange(10) * np.pi / 5 - np.pi / 2
        reach = np.where(np.arange(10) % 2 == 0, 1.05, 0.55)
        return np.stack([reach * np.cos(corner), reach * np.sin(corner)], axis=1)
    if kind == "gem":
        return np.array([(-0.6, -0.85), (0.6, -0.85), (1.0, -0.3), (0.0, 1.0), (-1.0, -0.3)])
    if kind == "heart":
        x = 16 * sin**3
        y = -(13 * cos - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        return np.stack([x / 16.5, y / 16.5], axis=1)
    if kind == "egg":
        return np.stack([cos * (0.82 + 0.12 * sin), sin], axis=1)
    if kind == "drop":
        return np.stack([cos * 0.8 * (0.6 + 0.4 * sin), sin], axis=1)
    if kind == "bell":
        return np.stack([cos * (0.75 + 0.25 * sin), np.clip(sin * 1.15, -1, 0.85)], axis=1)
    if kind == "flower":
        radius = 0.8 + 0.2 * np.cos(6 * turn)
    elif kind == "gear":
        radius = np.where(np.cos(9 * turn) > 0, 1.0, 0.8)
    elif kind == "cloud":
        radius = 0.86 + 0.1 * np.abs(np.sin(4 * turn))
    elif kind == "bean":
        phase = (wobble % 628) / 100
        radius = 0.86 + 0.12 * np.cos(2 * turn + phase) + 0.07 * np.cos(3 * turn - phase)
    return np.stack([radius * cos, radius * sin], axis=1)


def shade(color: Color, amount: float) -> Color:
    """Darken (`amount` below 0) or lighten (above 0) a colour; `amount` in -1..1."""
    target = 1.0 if amount > 0 else 0.0
    red, green, blue = (value + (target - value) * abs(amount) for value in color)
    return red, green, blue


def _bytes(color: Color) -> tuple[int, int, int, int]:
    return round(color[0] * 255), round(color[1] * 255), round(color[2] * 255), 255
