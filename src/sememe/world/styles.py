"""Conditions of the family "style", first half: other colours for the whole picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sememe.world.scene import Color
from sememe.world.take import Floats, Picture, Take

Restyle = Callable[[Take, Picture], Floats]


def restyle(take: Take, look: Restyle, start: float = 0.0, end: float = 0.55, full: float = 1.0) -> None:
    """Blend from the picture as filmed to `look`."""
    amount = (full * take.ramp(start, end))[:, None, None, None]

    def effect(current: Take, picture: Picture) -> Floats:
        changed = look(current, picture)
        return np.asarray(picture.frames + (changed - picture.frames) * amount, np.float32)

    take.picture_effects.append(effect)


def luminance(frames: Floats) -> Floats:
    """Perceived brightness, (..., height, width, 1) in 0..1."""
    return (frames @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]


def tone(take: Take, stops: tuple[Color, ...]) -> None:
    """Maps brightness to a scale of colours from the darkest to the lightest."""
    colors = np.array(stops, np.float32)
    steps = np.linspace(0, 255, len(stops))
    table = np.stack([np.interp(np.arange(256), steps, colors[:, channel]) for channel in range(3)], axis=-1).astype(
        np.float32
    )
    restyle(take, lambda _, picture: table[(luminance(picture.frames)[..., 0] * 255).clip(0, 255).astype(np.uint8)])


def grayscale(take: Take) -> None:
    """All colour drains away."""
    restyle(take, lambda _, picture: np.repeat(luminance(picture.frames), 3, axis=-1))


def invert(take: Take) -> None:
    """Every colour turns to its opposite."""
    restyle(take, lambda _, picture: 1 - picture.frames)


def night(take: Take) -> None:
    """Falls into a dark blue night."""
    tint = np.array([0.14, 0.2, 0.5], np.float32)
    restyle(take, lambda _, picture: luminance(picture.frames) * tint * 1.1, end=0.8)


def sunset(take: Take) -> None:
    """Is bathed in orange light that is strongest low in the picture."""

    def look(current: Take, picture: Picture) -> Floats:
        _, y = current.grid()
        warmth = (0.6 + 0.3 * y)[None, ..., None]
        filtered, glow = np.array([[1.0, 0.62, 0.42], [1.0, 0.5, 0.12]], np.float32)
        return picture.frames * filtered * (1 - warmth) + glow * warmth

    restyle(take, look, end=0.8)


def posterize(take: Take) -> None:
    """Few flat and loud colours."""
    restyle(take, lambda _, picture: np.round((picture.frames - 0.5) * 1.5 * 1.4 + 1) / 2)


def threshold(take: Take) -> None:
    """Pure black and pure white."""
    restyle(
        take, lambda _, picture: np.repeat(np.clip((luminance(picture.frames) - 0.52) * 14 + 0.5, 0, 1), 3, axis=-1)
    )


def solarize(take: Take) -> None:
    """Light parts turn dark as in an overexposed print."""
    restyle(take, lambda _, picture: np.abs(1 - 2 * np.abs(picture.frames - 0.42)).clip(0, 1))


def swap_channels(take: Take) -> None:
    """Red, green and blue change places."""
    restyle(take, lambda _, picture: picture.frames[..., [1, 2, 0]])


def hue_spin(take: Take) -> None:
    """All hues run once around the colour circle."""
    angle = 2 * np.pi * take.progress
    cos, sin = np.cos(angle), np.sin(angle)
    third, root = 1 / 3, np.sqrt(1 / 3)
    matrix = np.empty((take.num_frames, 3, 3), np.float32)
    for row in range(3):
        for column in range(3):
            sign = 0 if row == column else (1 if (column - row) % 3 == 1 else -1)
            matrix[:, row, column] = (cos if row == column else 0) + third * (1 - cos) - sign * root * sin

    def effect(_: Take, picture: Picture) -> Floats:
        grey = luminance(picture.frames)
        vivid = grey + 1.5 * (picture.frames - grey)
        weight = np.minimum(take.ramp(0, 0.15), 1)[:, None, None, None]
        source = picture.frames * (1 - weight) + vivid * weight
        # Plane by plane: einsum over an axis of three takes several times as long.
        turned = [
            sum(source[..., part] * matrix[:, channel, part, None, None] for part in range(3)) for channel in range(3)
        ]
        return np.stack(turned, axis=-1).clip(0, 1)

    take.picture_effects.append(effect)


def fade(take: Take, color: Color) -> None:
    """Fades to one colour."""
    flat = np.array(color, np.float32)
    restyle(take, lambda _, picture: np.broadcast_to(flat, picture.frames.shape), end=1.0, full=0.95)


def strobe(take: Take) -> None:
    """Flashes white and dark in turn."""
    flash = np.sign(np.sin(2 * np.pi * 4.25 * take.progress)).astype(np.float32) * take.ramp(0, 0.1)
    level = (0.62 * flash)[:, None, None, None]

    def effect(_: Take, picture: Picture) -> Floats:
        return np.where(level > 0, picture.frames + (1 - picture.frames) * level, picture.frames * (1 + level)).astype(
            np.float32
        )

    take.picture_effects.append(effect)


def old_film(take: Take) -> None:
    """Sepia, flicker, scratches and dark corners as on an old reel."""
    table = np.array([1.0, 0.86, 0.62], np.float32)
    scratches = np.array([-0.55, 0.2, 0.7], np.float32)

    def look(current: Take, picture: Picture) -> Floats:
        x, y = current.grid()
        flicker = 1 - 0.28 * (np.sin(2 * np.pi * 6.3 * current.progress) > 0.2)
        corner = np.clip(1.25 - 0.45 * (x / current.stage.aspect) ** 2 - 0.45 * y**2, 0, 1)
        grey = luminance(picture.frames) * corner[None, ..., None] * flicker[:, None, None, None]
        wander = 0.25 * np.sin(9 * current.progress)[:, None, None]
        line = sum(np.exp(-(((x[None] - place - wander) / 0.04) ** 2)) for place in scratches)
        return (grey * table + 0.7 * np.asarray(line)[..., None]).clip(0, 1).astype(np.float32)

    restyle(take, look, end=0.4)


def vignette(take: Take) -> None:
    """Darkness creeps in from the corners."""

    def look(current: Take, picture: Picture) -> Floats:
        x, y = current.grid()
        keep = np.clip(1.35 - 1.35 * np.hypot(x / current.stage.aspect, y), 0, 1)
        return picture.frames * keep[None, ..., None]

    restyle(take, look, end=0.7)


def selective_color(take: Take) -> None:
    """All but the subject turns grey and pale."""

    def look(_: Take, picture: Picture) -> Floats:
        grey = 0.35 + 0.6 * luminance(picture.frames)
        keep = picture.mask[..., None]
        return picture.frames * keep + grey * (1 - keep)

    restyle(take, look)


def vivid(take: Take) -> None:
    """Colours glow far beyond nature."""

    def look(_: Take, picture: Picture) -> Floats:
        grey = luminance(picture.frames)
        return (grey + 3.2 * (picture.frames - grey)).clip(0, 1)

    restyle(take, look)


def depth_map(take: Take) -> None:
    """Shows how far things are: near is white, far is black."""
    restyle(
        take, lambda _, picture: np.repeat(np.clip(1.15 / (picture.depth + 0.15) - 0.1, 0, 1)[..., None], 3, axis=-1)
    )


def silhouette(take: Take) -> None:
    """The subject alone turns black before a bright yellow ground."""

    def look(_: Take, picture: Picture) -> Floats:
        keep = 1 - picture.mask[..., None]
        return keep * np.array([0.98, 0.86, 0.3], np.float32)

    restyle(take, look)
