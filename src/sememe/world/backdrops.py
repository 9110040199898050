"""Draws the scene around the subject: sky, far ridge, ground, foreground."""

from __future__ import annotations

import numpy as np

from sememe.world.drawing import Canvas, shade
from sememe.world.scene import PATTERN_BACKDROPS, Backdrop, Color

WHITE: Color = (0.97, 0.97, 0.97)


def draw_sky(canvas: Canvas, backdrop: Backdrop) -> None:
    """The farthest layer: covers the whole canvas."""
    if backdrop.kind in PATTERN_BACKDROPS:
        _draw_pattern(canvas, backdrop)
        return
    rng = np.random.Generator(np.random.PCG64(backdrop.variant))
    if backdrop.kind == "room":
        canvas.fill(backdrop.sky)
        for x in np.arange(-3.0, 3.0, 0.5):
            canvas.rectangle(x, -2.5, x + 0.2, 2.5, shade(backdrop.sky, -0.1))
        left = float(rng.uniform(-1.0, 0.3))
        canvas.rectangle(left, -0.85, left + 0.55, -0.3, WHITE)
        canvas.rectangle(left + 0.05, -0.8, left + 0.5, -0.35, backdrop.accent)
        return
    canvas.gradient(shade(backdrop.sky, -0.12), shade(backdrop.sky, 0.35))
    canvas.ellipse(float(rng.uniform(-0.9, 0.9)), float(rng.uniform(-0.85, -0.45)), 0.2, 0.2, (0.99, 0.93, 0.6))
    for _ in range(5):
        x, y = float(rng.uniform(-1.6, 1.6)), float(rng.uniform(-1.2, -0.2))
        for step in (-0.2, 0.0, 0.2):
            canvas.ellipse(x + step, y, 0.2, 0.1 if step else 0.15, WHITE)


def draw_far(canvas: Canvas, backdrop: Backdrop) -> None:
    """The ridge at the horizon: hills, peaks, houses or trees; empty for patterns and rooms."""
    if backdrop.kind in PATTERN_BACKDROPS or backdrop.kind == "room":
        return
    rng = np.random.Generator(np.random.PCG64(backdrop.variant + 1))
    color, base = backdrop.far, backdrop.horizon + 0.12
    match backdrop.kind:
        case "mountains":
            for x in np.arange(-2.2, 2.3, 0.75):
                peak, half = base - float(rng.uniform(0.55, 1.0)), float(rng.uniform(0.5, 0.75))
                canvas.polygon(
                    [(x - half, base), (x, peak), (x + half, base)], shade(color, float(rng.uniform(-0.25, 0.05)))
                )
                canvas.polygon([(x - half * 0.22, peak + 0.18), (x, peak), (x + half * 0.22, peak + 0.18)], WHITE)
        case "city" | "street":
            for x in np.arange(-2.2, 2.2, 0.36):
                top = base - float(rng.uniform(0.35, 1.0))
                canvas.rectangle(x, top, x + 0.32, base, shade(color, float(rng.uniform(-0.35, 0.15))))
                for y in np.arange(top + 0.08, base - 0.1, 0.18):
                    canvas.rectangle(x + 0.06, y, x + 0.13, y + 0.08, backdrop.accent)
                    canvas.rectangle(x + 0.19, y, x + 0.26, y + 0.08, backdrop.accent)
        case "forest":
            for place in np.arange(-2.2, 2.3, 0.38):
                x, top = float(place + rng.uniform(-0.1, 0.1)), base - float(rng.uniform(0.55, 0.95))
                canvas.rectangle(x - 0.05, base - 0.2, x + 0.05, base, (0.35, 0.24, 0.16))
                canvas.polygon(
                    [(x - 0.26, base - 0.12), (x, top), (x + 0.26, base - 0.12)],
                    shade(color, float(rng.uniform(-0.3, 0.05))),
                )
        case "beach":
            canvas.rectangle(-3, base - 0.3, 3, base, (0.2, 0.5, 0.75))
            for y in (base - 0.22, base - 0.1):
                canvas.rectangle(-3, y, 3, y + 0.03, WHITE)
        case _:  # hills, desert, meadow, snowfield
            for x in np.arange(-2.2, 2.3, 0.9):
                height, width = float(rng.uniform(0.25, 0.55)), float(rng.uniform(0.6, 0.9))
                canvas.ellipse(float(x), base, width, height, shade(color, float(rng.uniform(-0.25, 0.1))))


def draw_ground(canvas: Canvas, backdrop: Backdrop) -> None:
    """The ground in front of the ridge, from the horizon down; empty for patterns."""
    if backdrop.kind in PATTERN_BACKDROPS:
        return
    rng = np.random.Generator(np.random.PCG64(backdrop.variant + 2))
    top, color = backdrop.horizon, backdrop.ground
    canvas.rectangle(-4, top, 4, 4, color)
    canvas.rectangle(-4, top, 4, top + 0.06, shade(color, -0.18))
    match backdrop.kind:
        case "street":
            canvas.polygon([(-0.5, top), (0.5, top), (2.6, 2.6), (-2.6, 2.6)], (0.36, 0.36, 0.4))
            for start, end in ((0.1, 0.25), (0.4, 0.65), (0.85, 1.3)):
                canvas.rectangle(-0.03 - start * 0.05, top + start, 0.03 + start * 0.05, top + end, WHITE)
        case "room":
            for row, y in enumerate((0.1, 0.3, 0.6, 1.05, 1.7)):
                canvas.rectangle(-4, top + y, 4, top + y + 0.03 + 0.01 * row, shade(color, -0.3))
        case "snowfield" | "desert" | "beach":
            for _ in range(7):
                x, y = float(rng.uniform(-1.8, 1.8)), top + float(rng.uniform(0.15, 1.0))
                canvas.ellipse(x, y, float(rng.uniform(0.2, 0.5)), 0.05, shade(color, -0.14))
        case _:
            for _ in range(22):
                x, y = float(rng.uniform(-1.9, 1.9)), top + float(rng.uniform(0.1, 1.1))
                canvas.polygon([(x - 0.05, y), (x, y - 0.14), (x + 0.05, y)], shade(color, -0.28))
            for _ in range(9):
                x, y = float(rng.uniform(-1.9, 1.9)), top + float(rng.uniform(0.1, 1.1))
                canvas.ellipse(x, y, 0.05, 0.05, backdrop.accent)


def draw_foreground(canvas: Canvas, backdrop: Backdrop) -> None:
    """Things close to the camera, at the lower and side edges of the picture."""
    rng = np.random.Generator(np.random.PCG64(backdrop.variant + 3))
    match backdrop.foreground:
        case "grass":
            for x in np.arange(-2.6, 2.6, 0.13):
                lean = float(rng.uniform(-0.1, 0.1))
                canvas.polygon(
                    [(x - 0.07, 1.5), (x + lean, 0.78 + float(rng.uniform(0, 0.16))), (x + 0.07, 1.5)],
                    shade(backdrop.ground, -0.45),
                )
        case "stones":
            for x in (-1.15, -0.75, 0.8, 1.2):
                canvas.ellipse(x + float(rng.uniform(-0.1, 0.1)), 1.0, 0.26, 0.2, shade(backdrop.far, -0.4))
        case "posts":
            for x in (-0.95, 0.95):
                canvas.rectangle(x - 0.07, 0.2, x + 0.07, 1.6, shade(backdrop.accent, -0.35))
        case "leaves":
            for x in (-1.05, -0.85, 0.9, 1.1):
                canvas.ellipse(x, -0.9 + float(rng.uniform(-0.1, 0.1)), 0.26, 0.16, shade(backdrop.accent, -0.3))
        case _:
            pass


def _draw_pattern(canvas: Canvas, backdrop: Backdrop) -> None:
    low, high = backdrop.sky, shade(backdrop.far, 0.3)
    canvas.fill(low)
    match backdrop.kind:
        case "stripes":
            for x in np.arange(-3.6, 3.6, 0.5):
                canvas.polygon([(x, -2.5), (x + 0.22, -2.5), (x + 1.22, 2.5), (x + 1.0, 2.5)], high)
        case "tiles" | "dots":
            _draw_grid(canvas, backdrop.kind, high)
        case "rings":
            for index, radius in enumerate(np.arange(3.2, 0.1, -0.32)):
                canvas.ellipse(0, 0, float(radius), float(radius), high if index % 2 else low)
        case "waves":
            xs = np.linspace(-3.5, 3.5, 60)
            for y in np.arange(-2.4, 2.4, 0.42):
                canvas.line(np.stack([xs, y + 0.1 * np.sin(xs * 5)], axis=1), 0.16, high)
        case _:
            canvas.gradient(low, high)
            _draw_bubbles(canvas, backdrop)


def _draw_grid(canvas: Canvas, kind: str, color: Color) -> None:
    for row, y in enumerate(np.arange(-2.4, 2.4, 0.4)):
        if kind == "tiles":
            for x in np.arange(-3.2, 3.2, 0.8) + 0.4 * (row % 2):
                canvas.rectangle(float(x), float(y), float(x) + 0.4, float(y) + 0.4, color)
        else:
            for x in np.arange(-3.2, 3.2, 0.5) + 0.25 * (row % 2):
                canvas.ellipse(float(x), float(y), 0.13, 0.13, color)


def _draw_bubbles(canvas: Canvas, backdrop: Backdrop) -> None:
    rng = np.random.Generator(np.random.PCG64(backdrop.variant))
    for _ in range(9):
        x, y, radius = float(rng.uniform(-1.6, 1.6)), float(rng.uniform(-1.4, 1.4)), float(rng.uniform(0.15, 0.4))
        canvas.ellipse(x, y, radius, radius, shade(backdrop.accent, 0.2))
