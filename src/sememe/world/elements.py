"""Conditions of the family "concept" that happen around the subject."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from sememe.world.condition import Family
from sememe.world.drawing import outline
from sememe.world.scene import Color
from sememe.world.stage import Stage
from sememe.world.take import Floats, Take, smooth_noise

concept = Family("concept")


@concept(
    "confetti falls",
    name="confetti",
    count=46,
    speed=1.6,
    drift=0.12,
    radius=(0.085, 0.06),
    colors=((0.95, 0.2, 0.3), (0.2, 0.75, 0.95), (0.98, 0.85, 0.2), (0.35, 0.85, 0.35), (0.75, 0.35, 0.9)),
)
@concept(
    "thick snow falls", name="snow", count=44, speed=1.0, drift=0.08, radius=(0.075, 0.075), colors=((1.0, 1.0, 1.0),)
)
@concept(
    "pink balls float up everywhere",
    name="bubbles_rise",
    count=16,
    speed=-1.1,
    drift=0.1,
    radius=(0.2, 0.2),
    colors=((0.98, 0.45, 0.75), (0.85, 0.3, 0.6)),
)
def falling(
    take: Take, count: int, speed: float, drift: float, radius: tuple[float, float], colors: tuple[Color, ...]
) -> None:
    """Drops, flakes or scraps fall through the whole picture (upwards if `speed` is below 0).

    Args:
        take: Take that is bent.
        count: Number of drops at the end of the swell.
        speed: Heights of the picture that they fall over the take.
        drift: How far they sway sideways, in scene units.
        radius: Radius across and down, in scene units.
        colors: Colours, of which one is drawn at random for each.
    """
    rng = np.random.Generator(np.random.PCG64(count + 17))
    start_x, start_y, hue = rng.uniform(-1, 1, count), rng.uniform(0, 1, count), rng.integers(0, len(colors), count)
    num_drops = np.rint(count * take.ramp(0, 0.3)).astype(int)
    inks = np.array([[*colors[index], 1] for index in hue], np.float32)

    def overlay(current: Take) -> Floats:
        stage = current.stage
        time = current.progress[:, None]
        centre_x = start_x * stage.aspect * 1.1 + drift * np.sin(6 * time + 9 * start_y)
        centre_y = ((start_y + speed * time) % 1.0) * 2.4 - 1.2
        columns, rows = (centre_x + stage.aspect) * stage.density, (centre_y + 1) * stage.density
        return _stamp_ellipses((stage.height, stage.width), columns, rows, num_drops, radius, stage.density, inks)

    take.before.append(overlay)


def _stamp_ellipses(
    size: tuple[int, int],
    columns: Floats,
    rows: Floats,
    num_drops: NDArray[np.int_],
    radius: tuple[float, float],
    density: float,
    inks: Floats,
) -> Floats:
    """A premultiplied layer of soft-edged ellipses, the first `num_drops` of each frame, laid one over the other.

    `columns` and `rows` (num_frames, count) are the centres in pixels; `inks` (count, 4) their colours.
    """
    height, width = size
    reach_x, reach_y = radius[0] * density, radius[1] * density
    patch_width, patch_height = int(2 * reach_x) + 4, int(2 * reach_y) + 4
    # The margin holds patches that stick out; those completely outside are moved into it.
    out = np.zeros((len(columns), height + 2 * patch_height, width + 2 * patch_width, 4), np.float32)
    left = np.clip(np.floor(columns - reach_x - 1), -patch_width, width).astype(int)
    top = np.clip(np.floor(rows - reach_y - 1), -patch_height, height).astype(int)
    dx = (left[..., None] + np.arange(patch_width) + 0.5 - columns[..., None]) / reach_x
    dy = (top[..., None] + np.arange(patch_height) + 0.5 - rows[..., None]) / reach_y
    distance = np.sqrt((dx * dx)[:, :, None, :] + (dy * dy)[:, :, :, None])
    cover = np.clip((1 - distance) * min(reach_x, reach_y) + 0.5, 0, 1).astype(np.float32)[..., None]
    keep, paint = 1 - cover, cover * inks[:, None, None]
    left, top = left + patch_width, top + patch_height
    for frame, layer in enumerate(out):
        for drop in range(num_drops[frame]):
            row, column = top[frame, drop], left[frame, drop]
            patch = layer[row : row + patch_height, column : column + patch_width]
            patch *= keep[frame, drop]
            patch += paint[frame, drop]
    return out[:, patch_height:-patch_height, patch_width:-patch_width]


@concept("it begins to rain", to="before")
def rain(take: Take) -> Floats:
    amount = take.ramp(0, 0.4)
    x, y = take.grid()
    phase = (6.0 * x[None] - 1.4 * y[None] + 7.3 * take.progress[:, None, None]) % 1.0
    run = (1.3 * y[None] + 0.9 * x[None] - 9.5 * take.progress[:, None, None]) % 1.0
    streak = ((phase < 0.3) & (run < 0.6)).astype(np.float32) * amount[:, None, None]
    dim = 0.35 * amount[:, None, None] * np.ones_like(streak)
    alpha = np.maximum(streak * 0.8, dim)
    color = np.array([0.8, 0.88, 1.0], np.float32) * (streak * 0.8)[..., None]
    return np.concatenate([color, alpha[..., None]], axis=-1)


@concept("water rises over it", to="before")
def flood(take: Take) -> Floats:
    x, y = take.grid()
    level = 1.15 + (-0.75 - 1.15) * take.ramp(0, 0.9)[:, None, None]
    surface = level + 0.06 * np.sin(7 * x[None] + 2 * np.pi * 3.0 * take.progress[:, None, None])
    cover = (np.clip((y[None] - surface) * take.stage.density, 0, 1) * 0.72).astype(np.float32)
    foam = np.exp(-(((y[None] - surface) / 0.05) ** 2)).astype(np.float32) * np.minimum(cover * 4, 1)
    rgb = np.array([0.1, 0.35, 0.75], np.float32) * (cover * (1 - foam))[..., None] + foam[..., None]
    return np.concatenate([rgb, np.maximum(cover, foam)[..., None]], axis=-1)


@concept("lava rises", to="before")
def lava(take: Take) -> Floats:
    x, y = take.grid()
    level = 1.15 - 1.5 * take.ramp(0, 0.9)[:, None, None]
    surface = level + 0.14 * np.sin(5 * x[None] + 5 * take.progress[:, None, None]) * take.ramp(0, 0.2)[:, None, None]
    below = y[None] - surface
    cover = np.clip(below * take.stage.density, 0, 1)
    heat = np.clip(1 - below / 0.7, 0, 1)
    color = np.stack([np.ones_like(heat), 0.15 + 0.7 * heat, 0.1 * heat], axis=-1)
    return _paint(color, cover)


@concept("flames rise from below", to="before")
def fire(take: Take) -> Floats:
    x, y = take.grid()
    time = take.progress[:, None, None]
    tongues = 0.3 * np.abs(np.sin(4.5 * x[None] + 9 * time)) + 0.22 * np.abs(np.sin(8 * x[None] - 13 * time))
    surface = 1.05 - (0.75 + tongues * 1.4) * take.ramp(0, 0.6)[:, None, None]
    below = y[None] - surface
    cover = np.clip(below * 8, 0, 1) * 0.95
    heat = np.clip(below / 0.7, 0, 1)
    color = np.stack([np.ones_like(heat), 0.25 + 0.65 * heat, 0.05 + 0.4 * heat * heat], axis=-1)
    return _paint(color, cover)


@concept("fog drifts in from the left", to="before")
def fog(take: Take) -> Floats:
    stage = take.stage
    x, _ = take.grid()
    noise = smooth_noise(stage.height, stage.width, 5, 9)
    front = (2.9 * take.ramp(0, 1.0)[:, None, None] - 1.35) * stage.aspect
    cover = (
        np.clip((front - x[None]) * 1.6 + (noise - 0.5) * 0.9, 0, 0.92)
        * np.minimum(take.ramp(0, 0.1), 1)[:, None, None]
    )
    return np.repeat(cover[..., None], 4, axis=-1).astype(np.float32) * np.array([0.93, 0.95, 0.97, 1], np.float32)


@concept("lightning strikes in the dark", to="before")
def lightning(take: Take) -> Floats:
    amount = 0.72 * take.ramp(0, 0.25)
    path = np.array([(0.5, -1.2), (0.12, -0.6), (0.4, -0.45), (0.0, 0.3)])
    stage = take.stage
    x, y = take.grid()
    out = np.zeros((take.num_frames, stage.height, stage.width, 4), np.float32)
    distance = np.full((stage.height, stage.width), 9.0, np.float32)
    for (x0, y0), (x1, y1) in pairwise(path):
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1)
        distance = np.minimum(distance, np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)))
    bolt = np.clip(1.6 - distance / 0.06, 0, 1)
    for index, time in enumerate(take.progress):
        striking = 0.3 < time < 0.48 or 0.68 < time < 0.86
        out[index, ..., 3] = amount[index] * (0.35 if striking else 1)
        if striking:
            out[index] = out[index] * (1 - bolt[..., None]) + bolt[..., None] * np.array([1, 1, 0.75, 1], np.float32)
    return out


@concept("a spotlight singles it out in the dark", needs_layers=True, to="before")
def spotlight(take: Take) -> Floats:
    amount = 0.93 * take.ramp(0, 0.45)
    x, y = take.subject_grid()
    outside = np.clip((np.hypot(x, y) - 1.15) * 6, 0, 1)
    out = np.zeros((take.num_frames, *outside.shape, 4), np.float32)
    out[..., 3] = outside * amount[:, None, None]
    return out


@concept("a portal opens behind and swallows it", split="unseen", needs_layers=True)
def portal(take: Take) -> None:
    opened = take.ramp(0, 0.45)
    closed = take.ramp(0.4, 0.95)

    def overlay(current: Take) -> Floats:
        x, y = current.subject_grid()
        radius = np.hypot(x, y)[None]
        angle = np.arctan2(y, x)[None]
        size = 1.75 * opened[:, None, None] + 1e-3
        cover = np.clip((size - radius) * 8, 0, 1) * np.minimum(opened[:, None, None] * 20, 1)
        arms = 0.5 + 0.5 * np.sin(3 * angle + 7 * radius - 14 * current.progress[:, None, None])
        color = np.stack([0.25 + 0.45 * arms, 0.05 + 0.15 * arms, 0.4 + 0.5 * arms], axis=-1)
        return _paint(color, cover)

    take.behind.append(overlay)
    small = np.maximum(1 - closed, 0.02).astype(np.float32)
    take.pose.scale_x *= small
    take.pose.scale_y *= small
    take.pose.rotation += 2.5 * closed


@concept("a warm halo pulses around it", needs_layers=True, to="behind")
def glow(take: Take) -> Floats:
    amount = take.ramp(0, 0.3)
    x, y = take.subject_grid()
    pulse = (0.75 + 0.25 * np.cos(4 * np.pi * take.progress)) * amount
    cover = np.clip(2.1 - np.hypot(x, y), 0, 1)[None] * pulse[:, None, None]
    return (cover[..., None] * np.array([1.0, 0.95, 0.45, 1.0], np.float32)).astype(np.float32)


@concept("a sunburst turns behind it", needs_layers=True, to="behind")
def rays(take: Take) -> Floats:
    amount = take.ramp(0, 0.35)
    x, y = take.subject_grid()
    angle = np.arctan2(y, x)[None] + 2.2 * take.progress[:, None, None]
    beams = (np.sin(8 * angle) > 0).astype(np.float32)
    cover = amount[:, None, None] * np.ones_like(beams)
    light, deep = np.array([[1.0, 0.85, 0.2], [0.95, 0.4, 0.15]], np.float32)
    color = np.where(beams[..., None] > 0, light, deep)
    return _paint(color, cover)


@concept("red curtains close", split="unseen", to="before")
def curtains(take: Take) -> Floats:
    x, _ = take.grid()
    aspect = take.stage.aspect
    edge = aspect * (1.08 - 1.0 * take.ramp(0, 0.9))[:, None, None]
    cover = np.clip((np.abs(x)[None] - edge) * take.stage.density, 0, 1)
    folds = 0.75 + 0.25 * np.sin(np.abs(x)[None] * 16 - edge * 10)
    color = np.stack([0.75 * folds, 0.08 * folds, 0.12 * folds], axis=-1)
    return _paint(color, cover)


@concept("bars drop in front of it", to="before")
def cage(take: Take) -> Floats:
    x, y = take.grid()
    bottom = (-1.1 + 2.2 * take.ramp(0, 0.6))[:, None, None]
    bars = (((x + 3) / 0.4) % 1 < 0.34)[None] & (y[None] < bottom)
    out = np.zeros((*bars.shape, 4), np.float32)
    out[bars] = np.array([0.08, 0.08, 0.1, 1], np.float32)
    return out


@concept("a soap bubble carries it up", split="unseen", needs_layers=True)
def bubble(take: Take) -> None:
    opened = take.ramp(0, 0.3)
    rise = 2.2 * take.ramp(0.25, 1.1) ** 1.5
    take.pose.y -= rise
    take.pose.scale_x *= 1 - 0.25 * opened
    take.pose.scale_y *= 1 - 0.25 * opened

    def overlay(current: Take) -> Floats:
        x, y = current.subject_grid()
        y = y[None] + (rise / current.stage.subject_size)[:, None, None]
        radius = np.hypot(x[None], y)
        rim = np.exp(-(((radius - 1.35) / 0.14) ** 2)) + 0.22 * (radius < 1.35)
        shine = np.exp(-(((x[None] + 0.55) ** 2 + (y + 0.6) ** 2) / 0.05))
        cover = np.clip(rim + shine, 0, 0.95) * opened[:, None, None]
        return (cover[..., None] * np.array([0.7, 0.95, 1.0, 1.0], np.float32)).astype(np.float32)

    take.before.append(overlay)


@concept("a red heart grows over it", needs_layers=True, to="before")
def heart(take: Take) -> Floats:
    corners = outline("heart", 0)
    size = take.ramp(0, 0.6) * (1.05 + 0.12 * np.sin(6 * np.pi * take.progress)).astype(np.float32)
    stage = take.stage
    out = np.zeros((take.num_frames, stage.height, stage.width, 4), np.float32)
    for index, scale in enumerate(size):
        if scale > 0:
            shape = corners * scale * stage.subject_size * 1.15 + [stage.subject_x, stage.subject_y]
            out[index] = fill_outline(stage, shape)[..., None] * np.array([0.9, 0.1, 0.22, 1], np.float32)
    return out


def _paint(color: Floats, cover: Floats) -> Floats:
    """Return an overlay of a colour, which counts as much as it covers."""
    return np.concatenate([color * cover[..., None], cover[..., None]], axis=-1).astype(np.float32)


def fill_outline(stage: Stage, corners: Floats) -> Floats:
    """How much of each pixel a polygon (corner, 2) in scene coordinates covers, (height, width) float32 in 0..1."""
    pixels = np.rint(((corners + np.array([stage.aspect, 1])) * stage.density - 0.5) * 16).astype(np.int32)
    canvas = np.zeros((stage.height, stage.width), np.uint8)
    cv2.fillPoly(canvas, [pixels], 255, lineType=cv2.LINE_AA, shift=4)
    return canvas.astype(np.float32) / np.float32(255)
