"""Conditions of the family "style", second half: other textures for the whole picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from sememe.world.styles import luminance, restyle
from sememe.world.take import Floats, Picture, Take


def _each(frames: Floats, change: Callable[[Floats], Any]) -> Floats:
    return np.stack([change(frame) for frame in frames])


def _edges(frames: Floats) -> Floats:
    """Strength of outlines, (num_frames, height, width) in 0..1."""
    grey = luminance(frames)[..., 0]
    across = np.abs(np.diff(grey, axis=2, append=grey[:, :, -1:]))
    down = np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    scale = max(1.0, frames.shape[1] / 64)
    edges: Floats = np.clip((across + down) * 4.5, 0, 1)
    if scale > 1:
        edges = _each(edges, lambda edge: cv2.dilate(edge, np.ones((2, 2), np.uint8)))
    return edges


def sketch(take: Take) -> None:
    """Becomes a pencil drawing on white paper."""
    restyle(take, lambda _, picture: np.repeat((1 - 0.9 * _edges(picture.frames))[..., None], 3, axis=-1))


def neon(take: Take) -> None:
    """Glowing coloured outlines on black."""

    def look(_: Take, picture: Picture) -> Floats:
        grey = luminance(picture.frames)
        hue = (grey + 3 * (picture.frames - grey)).clip(0.1, 1)
        return _edges(picture.frames)[..., None] * (0.25 + hue)

    restyle(take, look)


def blueprint(take: Take) -> None:
    """White lines on blueprint blue."""

    def look(_: Take, picture: Picture) -> Floats:
        edges = _edges(picture.frames)[..., None]
        return np.array([0.08, 0.22, 0.62], np.float32) * (1 - edges) + edges

    restyle(take, look)


def comic(take: Take) -> None:
    """Flat loud colours with black outlines."""

    def look(_: Take, picture: Picture) -> Floats:
        grey = luminance(picture.frames)
        loud = (grey + 1.9 * (picture.frames - grey)).clip(0, 1)
        return (np.round(loud * 2) / 2) * (1 - _edges(picture.frames)[..., None])

    restyle(take, look)


def emboss(take: Take) -> None:
    """Looks pressed into grey metal."""

    def look(_: Take, picture: Picture) -> Floats:
        grey = luminance(picture.frames)
        step = max(1, grey.shape[1] // 64)
        relief = grey - np.roll(np.roll(grey, step, axis=1), step, axis=2)
        return np.repeat((0.5 + 1.6 * relief).clip(0, 1), 3, axis=-1)

    restyle(take, look)


def pixelate(take: Take) -> None:
    """The picture's dots grow coarse."""
    levels = take.ramp(0, 0.6)

    def effect(_: Take, picture: Picture) -> Floats:
        height, width = picture.frames.shape[1:3]
        out = picture.frames.copy()
        for index, level in enumerate(levels):
            if level > 0.15:
                cells = 16 if level < 0.6 else 8
                coarse = cv2.resize(
                    picture.frames[index], (cells * width // height, cells), interpolation=cv2.INTER_AREA
                )
                out[index] = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
        return out

    take.picture_effects.append(effect)


def halftone(take: Take) -> None:
    """Black dots on cream, larger where it is dark."""

    def look(current: Take, picture: Picture) -> Floats:
        x, y = current.grid()
        screen = 0.5 + 0.25 * (np.cos(2 * np.pi * (x + y) * 3.2) + np.cos(2 * np.pi * (x - y) * 3.2))
        ink = np.clip((screen[None] - luminance(picture.frames)[..., 0]) * 5 + 0.5, 0, 1)[..., None]
        return np.array([0.97, 0.93, 0.8], np.float32) * (1 - ink) + np.array([0.1, 0.08, 0.2], np.float32) * ink

    restyle(take, look)


def hatch(take: Take) -> None:
    """Engraved in slanting blue strokes that thicken in the shadows."""

    def look(current: Take, picture: Picture) -> Floats:
        x, y = current.grid()
        screen = 0.5 + 0.5 * np.sin(2 * np.pi * (x + 0.6 * y) * 4.2)
        ink = np.clip((screen[None] * 1.1 - luminance(picture.frames)[..., 0]) * 4 + 0.4, 0, 1)[..., None]
        return 1 - ink * np.array([0.9, 0.75, 0.3], np.float32)

    restyle(take, look)


def mosaic(take: Take) -> None:
    """Stained glass: crooked panes of one colour with dark leading."""

    def look(current: Take, picture: Picture) -> Floats:
        height, width = picture.frames.shape[1:3]
        rng = np.random.Generator(np.random.PCG64(21))
        aspect = current.stage.aspect
        seeds = np.stack([rng.uniform(-aspect, aspect, 34), rng.uniform(-1, 1, 34)], axis=-1)
        x, y = current.grid()
        distance = np.hypot(x[..., None] - seeds[:, 0], y[..., None] - seeds[:, 1])
        order = np.sort(distance, axis=-1)
        lead = np.clip((order[..., 1] - order[..., 0]) * 14 - 0.3, 0, 1)[None, ..., None]
        pane = distance.argmin(axis=-1)
        columns = np.clip(((seeds[:, 0] + aspect) / aspect / 2 * width).astype(int), 0, width - 1)
        rows = np.clip(((seeds[:, 1] + 1) / 2 * height).astype(int), 0, height - 1)
        soft = np.stack([cv2.blur(frame, (7, 7)) for frame in picture.frames])
        return soft[:, rows, columns][:, pane] * lead

    restyle(take, look)


def glitch(take: Take) -> None:
    """Rows jump sideways and the colours come apart."""
    rng = np.random.Generator(np.random.PCG64(4))
    jumps = rng.uniform(-1, 1, (64, 10))
    amount = take.ramp(0, 0.25)

    def effect(current: Take, picture: Picture) -> Floats:
        out = picture.frames.copy()
        height, width = out.shape[1:3]
        for index, level in enumerate(amount):
            if level <= 0:
                continue
            step = int(current.progress[index] * 16 + 1e-4) // 2
            for band in range(10):
                rows = slice(band * height // 10, (band + 1) * height // 10)
                shift = round(jumps[step % 64, band] * level * 0.24 * width)
                for channel, extra in enumerate((-0.05, 0.0, 0.05)):
                    move = shift + round(extra * level * width)
                    out[index, rows, :, channel] = np.roll(picture.frames[index, rows, :, channel], move, axis=1)
        return out

    take.picture_effects.append(effect)


def split_colors(take: Take) -> None:
    """The red and the blue picture drift apart."""
    amount = take.ramp(0, 0.7)

    def effect(_: Take, picture: Picture) -> Floats:
        out = picture.frames.copy()
        size = (out.shape[2], out.shape[1])
        for index, level in enumerate(amount):
            shift = float(level * 0.15 * size[0])
            for channel, side in ((0, -1), (2, 1)):
                move = np.array([[1, 0, side * shift], [0, 1, 0]], np.float32)
                plane = np.ascontiguousarray(out[index, :, :, channel])
                out[index, :, :, channel] = cv2.warpAffine(plane, move, size, borderMode=cv2.BORDER_REPLICATE)
        return out

    take.picture_effects.append(effect)


def scanlines(take: Take) -> None:
    """A green monitor with dark lines that roll down."""

    def look(current: Take, picture: Picture) -> Floats:
        _, y = current.grid()
        lines = 0.5 + 0.5 * np.sin(2 * np.pi * (3.6 * y[None] - 2.0 * current.progress[:, None, None]))
        return luminance(picture.frames) * (0.35 + 0.75 * lines[..., None]) * np.array([0.35, 1.0, 0.45], np.float32)

    restyle(take, look, end=0.4)


def underwater(take: Take) -> None:
    """Sways in blue-green water."""
    amount = take.ramp(0, 0.4)

    def lens(current: Take, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        phase = 2 * np.pi * 2 * current.progress[:, None, None]
        swell = amount[:, None, None] * 0.11
        return x + swell * np.sin(4.5 * y + phase), y + swell * np.cos(4.0 * x + phase)

    take.lenses.append(lens)
    light, depth = np.array([[0.3, 0.85, 0.95], [0, 0.06, 0.12]], np.float32)
    restyle(take, lambda _, picture: luminance(picture.frames) * light + depth, full=0.8)


def kaleidoscope(take: Take) -> None:
    """The left upper quarter mirrors into all four."""

    def look(_: Take, picture: Picture) -> Floats:
        frames = picture.frames
        height, width = frames.shape[1:3]
        rows = np.minimum(np.arange(height), height - 1 - np.arange(height)) + height // 4
        columns = np.minimum(np.arange(width), width - 1 - np.arange(width)) + width // 4
        return frames[:, rows][:, :, columns]

    restyle(take, look, end=0.5)


def tile(take: Take, count: int) -> None:
    """The picture repeats itself in a grid of `count` by `count`."""

    def look(_: Take, picture: Picture) -> Floats:
        height, width = picture.frames.shape[1:3]
        small = np.stack(
            [
                cv2.resize(frame, (width // count, height // count), interpolation=cv2.INTER_AREA)
                for frame in picture.frames
            ]
        )
        grid = np.tile(small, (1, count, count, 1))
        if grid.shape[1:3] != (height, width):
            grid = np.stack([cv2.resize(frame, (width, height)) for frame in grid])
        return grid

    restyle(take, look, end=0.5)


def smear(take: Take) -> None:
    """Wind drags everything into level streaks."""

    def look(_: Take, picture: Picture) -> Floats:
        width = picture.frames.shape[2]
        return _each(picture.frames, lambda frame: cv2.blur(frame, (2 * (width // 4) + 1, 1)))

    restyle(take, look, end=0.8)


def checker_invert(take: Take) -> None:
    """Every other square of a chessboard shows its opposite colours."""

    def look(current: Take, picture: Picture) -> Floats:
        x, y = current.grid()
        odd = (np.floor((x + 8) * 2) + np.floor((y + 8) * 2)) % 2 > 0
        return np.where(odd[None, ..., None], 1 - picture.frames, picture.frames)

    restyle(take, look)


def wipe(take: Take) -> None:
    """A bright line sweeps across and leaves a negative in blue behind it."""
    front = 2.4 * take.ramp(0, 1.0) - 1.2

    def effect(current: Take, picture: Picture) -> Floats:
        x, _ = current.grid()
        place = (front * current.stage.aspect)[:, None, None]
        behind = np.clip((place - x[None]) * current.stage.density / 2, 0, 1)[..., None]
        line = np.exp(-(((x[None] - place) / 0.08) ** 2))[..., None]
        changed = (1 - luminance(picture.frames)) * np.array([0.45, 0.75, 1.0], np.float32)
        return (picture.frames * (1 - behind) + changed * behind + line).clip(0, 1).astype(np.float32)

    take.picture_effects.append(effect)
