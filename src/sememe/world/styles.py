"""Conditions of the family "style": other colours and textures for the whole picture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import cv2
import numpy as np

from sememe.world.condition import Family, Function
from sememe.world.scene import Color
from sememe.world.take import Floats, Picture, Take

SEPIA = ((0.15, 0.07, 0.02), (0.72, 0.5, 0.28), (1.0, 0.93, 0.75))
CONSOLE = ((0.05, 0.18, 0.08), (0.2, 0.4, 0.2), (0.55, 0.68, 0.1), (0.78, 0.86, 0.3))
CANDY = ((0.55, 0.05, 0.4), (1.0, 0.45, 0.7), (0.6, 1.0, 0.85))
THERMAL = ((0.0, 0.0, 0.35), (0.5, 0.0, 0.6), (0.95, 0.2, 0.1), (1.0, 0.75, 0.0), (1.0, 1.0, 0.8))
Look = Callable[[Take, Picture], Floats]

style = Family("style")


def look(phrase: str, *, end: float = 0.55, full: float = 1.0, **row: Any) -> Callable[[Function], Function]:
    """List a function that gives the changed picture; see `restyle` for `end` and `full`, `Family` for the rest."""

    def decorate(function: Function) -> Function:
        @wraps(function)
        def bend(take: Take, **arguments: Any) -> None:
            restyle(take, partial(function, **arguments), end, full)

        style(phrase, **row)(bend)
        return function

    return decorate


def restyle(take: Take, change: Look, end: float = 0.55, full: float = 1.0) -> None:
    """Blend from the picture as filmed to a changed one: to the share `full` of it, reached at `end` of the take."""
    amount = (full * take.ramp(0, end))[:, None, None, None]

    def effect(current: Take, picture: Picture) -> Floats:
        changed = change(current, picture)
        return np.asarray(picture.frames + (changed - picture.frames) * amount, np.float32)

    take.picture_effects.append(effect)


def luminance(frames: Floats) -> Floats:
    """Perceived brightness, (..., height, width, 1) in 0..1."""
    return (frames @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]


@look("the picture turns sepia", name="sepia", stops=SEPIA)
@look("the picture turns to the greens of an old game console", name="game_console", stops=CONSOLE)
@look("the picture turns pink and mint", name="candy", stops=CANDY)
@look("the picture turns into a heat camera's", name="thermal", stops=THERMAL)
def tone(_: Take, picture: Picture, stops: tuple[Color, ...]) -> Floats:
    """Maps brightness to a scale of colours from the darkest to the lightest."""
    return map_tones(picture.frames, np.array(stops, np.float32))


def map_tones(frames: Floats, stops: Floats) -> Floats:
    """Map brightness to colours (stop, 3) from the darkest to the lightest; those between stops are interpolated."""
    steps = np.linspace(0, 255, len(stops))
    table = np.stack([np.interp(np.arange(256), steps, stops[:, channel]) for channel in range(3)], axis=-1)
    return table.astype(np.float32)[(luminance(frames)[..., 0] * 255).clip(0, 255).astype(np.uint8)]


@look("all colour drains from the picture")
def grayscale(_: Take, picture: Picture) -> Floats:
    return np.repeat(luminance(picture.frames), 3, axis=-1)


@look("the picture turns into its negative")
def invert(_: Take, picture: Picture) -> Floats:
    return 1 - picture.frames


@look("night falls", end=0.8)
def night(_: Take, picture: Picture) -> Floats:
    tint = np.array([0.14, 0.2, 0.5], np.float32)
    return luminance(picture.frames) * tint * 1.1


@look("a sunset bathes everything in orange", end=0.8)
def sunset(take: Take, picture: Picture) -> Floats:
    _, y = take.grid()
    warmth = (0.6 + 0.3 * y)[None, ..., None]
    filtered, glow = np.array([[1.0, 0.62, 0.42], [1.0, 0.5, 0.12]], np.float32)
    return picture.frames * filtered * (1 - warmth) + glow * warmth


@look("the picture becomes a loud poster")
def posterize(_: Take, picture: Picture) -> Floats:
    return np.round((picture.frames - 0.5) * 1.5 * 1.4 + 1) / 2


@look("only black and white remain")
def threshold(_: Take, picture: Picture) -> Floats:
    return np.repeat(np.clip((luminance(picture.frames) - 0.52) * 14 + 0.5, 0, 1), 3, axis=-1)


@look("the picture solarizes")
def solarize(_: Take, picture: Picture) -> Floats:
    return np.abs(1 - 2 * np.abs(picture.frames - 0.42)).clip(0, 1)


@look("the colours change places")
def swap_channels(_: Take, picture: Picture) -> Floats:
    return picture.frames[..., [1, 2, 0]]


@style("all hues run around the colour circle", to="picture_effects")
def hue_spin(take: Take, picture: Picture) -> Floats:
    angle = 2 * np.pi * take.progress
    cos, sin = np.cos(angle), np.sin(angle)
    third, root = 1 / 3, np.sqrt(1 / 3)
    matrix = np.empty((take.num_frames, 3, 3), np.float32)
    for row in range(3):
        for column in range(3):
            sign = 0 if row == column else (1 if (column - row) % 3 == 1 else -1)
            matrix[:, row, column] = (cos if row == column else 0) + third * (1 - cos) - sign * root * sin
    grey = luminance(picture.frames)
    vivid = grey + 1.5 * (picture.frames - grey)
    weight = np.minimum(take.ramp(0, 0.15), 1)[:, None, None, None]
    source = picture.frames * (1 - weight) + vivid * weight
    # Plane by plane: einsum over an axis of three takes several times as long.
    turned = [
        sum(source[..., part] * matrix[:, channel, part, None, None] for part in range(3)) for channel in range(3)
    ]
    return np.stack(turned, axis=-1).clip(0, 1)


@look("the picture fades to white", name="fade_to_white", color=(1.0, 1.0, 1.0), end=1.0, full=0.95)
@look("the picture fades to black", name="fade_to_black", color=(0.0, 0.0, 0.0), end=1.0, full=0.95)
def fade(_: Take, picture: Picture, color: Color) -> Floats:
    """Fades to one colour."""
    flat = np.array(color, np.float32)
    return np.broadcast_to(flat, picture.frames.shape)


@style("the light flashes", split="unseen", to="picture_effects")
def strobe(take: Take, picture: Picture) -> Floats:
    flash = np.sign(np.sin(2 * np.pi * 4.25 * take.progress)).astype(np.float32) * take.ramp(0, 0.1)
    level = (0.62 * flash)[:, None, None, None]
    return np.where(level > 0, picture.frames + (1 - picture.frames) * level, picture.frames * (1 + level)).astype(
        np.float32
    )


@look("the picture becomes an old film", split="unseen", end=0.4)
def old_film(take: Take, picture: Picture) -> Floats:
    table = np.array([1.0, 0.86, 0.62], np.float32)
    scratches = np.array([-0.55, 0.2, 0.7], np.float32)
    x, y = take.grid()
    flicker = 1 - 0.28 * (np.sin(2 * np.pi * 6.3 * take.progress) > 0.2)
    corner = np.clip(1.25 - 0.45 * (x / take.stage.aspect) ** 2 - 0.45 * y**2, 0, 1)
    grey = luminance(picture.frames) * corner[None, ..., None] * flicker[:, None, None, None]
    wander = 0.25 * np.sin(9 * take.progress)[:, None, None]
    line = sum(np.exp(-(((x[None] - place - wander) / 0.04) ** 2)) for place in scratches)
    return (grey * table + 0.7 * np.asarray(line)[..., None]).clip(0, 1).astype(np.float32)


@look("darkness creeps in from the corners", end=0.7)
def vignette(take: Take, picture: Picture) -> Floats:
    x, y = take.grid()
    keep = np.clip(1.35 - 1.35 * np.hypot(x / take.stage.aspect, y), 0, 1)
    return picture.frames * keep[None, ..., None]


@look("all but it turns grey", needs_layers=True)
def selective_color(_: Take, picture: Picture) -> Floats:
    grey = 0.35 + 0.6 * luminance(picture.frames)
    keep = picture.mask[..., None]
    return picture.frames * keep + grey * (1 - keep)


@look("the colours glow")
def vivid(_: Take, picture: Picture) -> Floats:
    grey = luminance(picture.frames)
    return (grey + 3.2 * (picture.frames - grey)).clip(0, 1)


@look("the picture shows only distance", needs_layers=True)
def depth_map(_: Take, picture: Picture) -> Floats:
    return np.repeat(np.clip(1.15 / (picture.depth + 0.15) - 0.1, 0, 1)[..., None], 3, axis=-1)


@look("it turns black before a yellow ground", needs_layers=True)
def silhouette(_: Take, picture: Picture) -> Floats:
    keep = 1 - picture.mask[..., None]
    return keep * np.array([0.98, 0.86, 0.3], np.float32)


def _each(frames: Floats, change: Callable[[Floats], Any]) -> Floats:
    return np.stack([change(frame) for frame in frames])


def edges(frames: Floats) -> Floats:
    """Strength of outlines, (num_frames, height, width) in 0..1."""
    grey = luminance(frames)[..., 0]
    across = np.abs(np.diff(grey, axis=2, append=grey[:, :, -1:]))
    down = np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    scale = max(1.0, frames.shape[1] / 64)
    strength: Floats = np.clip((across + down) * 4.5, 0, 1)
    if scale > 1:
        strength = _each(strength, lambda edge: cv2.dilate(edge, np.ones((2, 2), np.uint8)))
    return strength


@look("the picture becomes a pencil sketch")
def sketch(_: Take, picture: Picture) -> Floats:
    return np.repeat((1 - 0.9 * edges(picture.frames))[..., None], 3, axis=-1)


@look("the picture becomes neon outlines")
def neon(_: Take, picture: Picture) -> Floats:
    grey = luminance(picture.frames)
    hue = (grey + 3 * (picture.frames - grey)).clip(0.1, 1)
    return edges(picture.frames)[..., None] * (0.25 + hue)


@look("the picture becomes a blueprint")
def blueprint(_: Take, picture: Picture) -> Floats:
    line = edges(picture.frames)[..., None]
    return np.array([0.08, 0.22, 0.62], np.float32) * (1 - line) + line


@look("the picture becomes a comic", split="unseen")
def comic(_: Take, picture: Picture) -> Floats:
    grey = luminance(picture.frames)
    loud = (grey + 1.9 * (picture.frames - grey)).clip(0, 1)
    return (np.round(loud * 2) / 2) * (1 - edges(picture.frames)[..., None])


@look("the picture looks pressed into metal")
def emboss(_: Take, picture: Picture) -> Floats:
    grey = luminance(picture.frames)
    step = max(1, grey.shape[1] // 64)
    relief = grey - np.roll(np.roll(grey, step, axis=1), step, axis=2)
    return np.repeat((0.5 + 1.6 * relief).clip(0, 1), 3, axis=-1)


@style("the picture grows coarse pixels", to="picture_effects")
def pixelate(take: Take, picture: Picture) -> Floats:
    levels = take.ramp(0, 0.6)
    height, width = picture.frames.shape[1:3]
    out = picture.frames.copy()
    for index, level in enumerate(levels):
        if level > 0.15:
            cells = 16 if level < 0.6 else 8
            coarse = cv2.resize(picture.frames[index], (cells * width // height, cells), interpolation=cv2.INTER_AREA)
            out[index] = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    return out


@look("the picture becomes halftone dots")
def halftone(take: Take, picture: Picture) -> Floats:
    x, y = take.grid()
    screen = 0.5 + 0.25 * (np.cos(2 * np.pi * (x + y) * 3.2) + np.cos(2 * np.pi * (x - y) * 3.2))
    ink = np.clip((screen[None] - luminance(picture.frames)[..., 0]) * 5 + 0.5, 0, 1)[..., None]
    return np.array([0.97, 0.93, 0.8], np.float32) * (1 - ink) + np.array([0.1, 0.08, 0.2], np.float32) * ink


@look("the picture is engraved in strokes", split="unseen")
def hatch(take: Take, picture: Picture) -> Floats:
    x, y = take.grid()
    screen = 0.5 + 0.5 * np.sin(2 * np.pi * (x + 0.6 * y) * 4.2)
    ink = np.clip((screen[None] * 1.1 - luminance(picture.frames)[..., 0]) * 4 + 0.4, 0, 1)[..., None]
    return 1 - ink * np.array([0.9, 0.75, 0.3], np.float32)


@look("the picture becomes stained glass")
def mosaic(take: Take, picture: Picture) -> Floats:
    height, width = picture.frames.shape[1:3]
    rng = np.random.Generator(np.random.PCG64(21))
    aspect = take.stage.aspect
    seeds = np.stack([rng.uniform(-aspect, aspect, 34), rng.uniform(-1, 1, 34)], axis=-1)
    x, y = take.grid()
    distance = np.hypot(x[..., None] - seeds[:, 0], y[..., None] - seeds[:, 1])
    order = np.sort(distance, axis=-1)
    lead = np.clip((order[..., 1] - order[..., 0]) * 14 - 0.3, 0, 1)[None, ..., None]
    pane = distance.argmin(axis=-1)
    columns = np.clip(((seeds[:, 0] + aspect) / aspect / 2 * width).astype(int), 0, width - 1)
    rows = np.clip(((seeds[:, 1] + 1) / 2 * height).astype(int), 0, height - 1)
    soft = np.stack([cv2.blur(frame, (7, 7)) for frame in picture.frames])
    return soft[:, rows, columns][:, pane] * lead


@style("the picture glitches", to="picture_effects")
def glitch(take: Take, picture: Picture) -> Floats:
    rng = np.random.Generator(np.random.PCG64(4))
    jumps = rng.uniform(-1, 1, (64, 10))
    amount = take.ramp(0, 0.25)
    out = picture.frames.copy()
    height, width = out.shape[1:3]
    for index, level in enumerate(amount):
        if level <= 0:
            continue
        step = int(take.progress[index] * 16 + 1e-4) // 2
        for band in range(10):
            rows = slice(band * height // 10, (band + 1) * height // 10)
            shift = round(jumps[step % 64, band] * level * 0.24 * width)
            for channel, extra in enumerate((-0.05, 0.0, 0.05)):
                move = shift + round(extra * level * width)
                out[index, rows, :, channel] = np.roll(picture.frames[index, rows, :, channel], move, axis=1)
    return out


@style("red and blue drift apart", to="picture_effects")
def split_colors(take: Take, picture: Picture) -> Floats:
    amount = take.ramp(0, 0.7)
    out = picture.frames.copy()
    size = (out.shape[2], out.shape[1])
    for index, level in enumerate(amount):
        shift = float(level * 0.15 * size[0])
        for channel, side in ((0, -1), (2, 1)):
            move = np.array([[1, 0, side * shift], [0, 1, 0]], np.float32)
            plane = np.ascontiguousarray(out[index, :, :, channel])
            out[index, :, :, channel] = cv2.warpAffine(plane, move, size, borderMode=cv2.BORDER_REPLICATE)
    return out


@look("the picture turns into a green monitor", end=0.4)
def scanlines(take: Take, picture: Picture) -> Floats:
    _, y = take.grid()
    lines = 0.5 + 0.5 * np.sin(2 * np.pi * (3.6 * y[None] - 2.0 * take.progress[:, None, None]))
    return luminance(picture.frames) * (0.35 + 0.75 * lines[..., None]) * np.array([0.35, 1.0, 0.45], np.float32)


@style("the picture sways under water", split="unseen")
def underwater(take: Take) -> None:
    amount = take.ramp(0, 0.4)

    def lens(current: Take, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        phase = 2 * np.pi * 2 * current.progress[:, None, None]
        swell = amount[:, None, None] * 0.11
        return x + swell * np.sin(4.5 * y + phase), y + swell * np.cos(4.0 * x + phase)

    take.lenses.append(lens)
    light, depth = np.array([[0.3, 0.85, 0.95], [0, 0.06, 0.12]], np.float32)
    restyle(take, lambda _, picture: luminance(picture.frames) * light + depth, full=0.8)


@look("the picture becomes a kaleidoscope", split="unseen", end=0.5)
def kaleidoscope(_: Take, picture: Picture) -> Floats:
    frames = picture.frames
    height, width = frames.shape[1:3]
    rows = np.minimum(np.arange(height), height - 1 - np.arange(height)) + height // 4
    columns = np.minimum(np.arange(width), width - 1 - np.arange(width)) + width // 4
    return frames[:, rows][:, :, columns]


@look("the picture repeats four times", count=2, end=0.5)
def tile(_: Take, picture: Picture, count: int) -> Floats:
    """The picture repeats itself in a grid of `count` by `count`."""
    height, width = picture.frames.shape[1:3]
    small = np.stack(
        [cv2.resize(frame, (width // count, height // count), interpolation=cv2.INTER_AREA) for frame in picture.frames]
    )
    grid = np.tile(small, (1, count, count, 1))
    if grid.shape[1:3] != (height, width):
        grid = np.stack([cv2.resize(frame, (width, height)) for frame in grid])
    return grid


@look("wind smears everything", end=0.8)
def smear(_: Take, picture: Picture) -> Floats:
    width = picture.frames.shape[2]
    return _each(picture.frames, lambda frame: cv2.blur(frame, (2 * (width // 4) + 1, 1)))


@look("a chessboard of negatives appears")
def checker_invert(take: Take, picture: Picture) -> Floats:
    x, y = take.grid()
    odd = (np.floor((x + 8) * 2) + np.floor((y + 8) * 2)) % 2 > 0
    return np.where(odd[None, ..., None], 1 - picture.frames, picture.frames)


@style("a line sweeps across and leaves a blue negative", to="picture_effects")
def wipe(take: Take, picture: Picture) -> Floats:
    front = 2.4 * take.ramp(0, 1.0) - 1.2
    x, _ = take.grid()
    place = (front * take.stage.aspect)[:, None, None]
    behind = np.clip((place - x[None]) * take.stage.density / 2, 0, 1)[..., None]
    line = np.exp(-(((x[None] - place) / 0.08) ** 2))[..., None]
    changed = (1 - luminance(picture.frames)) * np.array([0.45, 0.75, 1.0], np.float32)
    return (picture.frames * (1 - behind) + changed * behind + line).clip(0, 1).astype(np.float32)
