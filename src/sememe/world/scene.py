"""What is in front of the camera: a `Scene` is a record of choices, drawn from a seed.

A scene holds no pixels. `random_scene` picks every parameter with NumPy's PCG64 generator, so that one seed gives
the same scene on every machine. `world.stage` turns the record into layers, `world.renderer` films them.

Most scenes are drawn in flat colours. Some are textured: the same subjects and backdrops in materials, light and
shadow, or a subject in front of a photograph. Some are only a photograph.

Coordinates: x to the right, y down, the picture spans y from -1 to 1 and x from -aspect to aspect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np

from sememe.errors import InputError

BODIES = ("ball", "box", "star", "egg", "drop", "heart", "flower", "bean", "gem", "gear", "bell", "cloud")
CREATURES = ("cat", "bear", "robot", "bird", "rabbit", "alien")
OBJECTS = ("house", "car", "rocket", "tree", "mushroom", "cup", "cactus", "snowman", "lamp", "cake")
TEXTURES = ("plain", "stripes", "dots", "checks", "shaded", "bands", "patches")
BACKDROPS = (
    "hills",
    "mountains",
    "city",
    "forest",
    "beach",
    "desert",
    "meadow",
    "room",
    "street",
    "snowfield",
    "stripes",
    "tiles",
    "dots",
    "rings",
    "waves",
    "gradient",
)
PATTERN_BACKDROPS = frozenset({"stripes", "tiles", "dots", "rings", "waves", "gradient"})
FOREGROUNDS = ("none", "none", "grass", "stones", "posts", "leaves")

COLORS = {
    "red": (0.86, 0.20, 0.18),
    "orange": (0.95, 0.55, 0.15),
    "yellow": (0.96, 0.83, 0.22),
    "lime": (0.62, 0.82, 0.25),
    "green": (0.20, 0.62, 0.30),
    "teal": (0.13, 0.62, 0.60),
    "sky": (0.42, 0.72, 0.94),
    "blue": (0.20, 0.38, 0.80),
    "violet": (0.50, 0.32, 0.76),
    "pink": (0.94, 0.52, 0.68),
    "brown": (0.52, 0.34, 0.20),
    "cream": (0.95, 0.89, 0.74),
    "white": (0.95, 0.95, 0.95),
    "slate": (0.34, 0.40, 0.48),
}

LIGHTS = {
    "day": ((1.0, 1.0, 1.0), 0.0),
    "dusk": ((1.0, 0.66, 0.46), 0.0),
    "night": ((0.36, 0.38, 0.6), 0.0),
    "mist": ((0.5, 0.5, 0.52), 0.42),
}
"""What light does to colours: factors of red, green and blue, and how much white is added."""

EVALUATION_SEED = 10_000_000
"""Scenes for evaluation have seeds from here on. They show photographs that no training scene shows."""
TEXTURED_SHARE, PHOTOGRAPH_SHARE = 0.25, 0.15  # all other scenes are drawn in flat colours
PHOTO_BACKDROP_SHARE = 0.35  # of the textured scenes have a photograph behind the subject

PHOTOGRAPHS = ("astronaut", "cameraman", "coffee", "raccoon", "rocket", "stairs")
HELD_OUT_PHOTOGRAPHS = ("cat", "officer")
GREY_PHOTOGRAPHS = frozenset({"cameraman", "stairs"})
MATERIALS = ("brick", "clouds", "fur", "grass", "marble", "pebbles", "rock", "wood")
HELD_OUT_MATERIALS = ("gravel",)  # photographed, like brick and grass

Color = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject: silhouette, surface, face and limbs."""

    kind: str
    color_name: str
    color: Color
    accent_name: str
    accent: Color
    texture: str
    has_face: bool
    has_legs: bool
    has_arms: bool
    top: str  # "none", "hat", "antenna", "bow" or "crown"
    eye_size: float
    mouth: str  # "smile", "open" or "flat"
    wobble: int  # seed of small irregularities
    x: float
    y: float
    size: float  # half height, in half picture heights


class Look(TypedDict):
    """Fields of a `Subject` that depend on its kind and on chance."""

    has_face: bool
    has_legs: bool
    has_arms: bool
    top: str
    eye_size: float
    mouth: str
    wobble: int


@dataclass(frozen=True, slots=True)
class Backdrop:
    """Everything behind and in front of the subject."""

    kind: str
    sky: Color
    far: Color
    ground: Color
    accent: Color
    horizon: float  # y of the horizon
    foreground: str
    variant: int  # seed of the placement of hills, houses, clouds and so on


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of a photograph and how it is developed.

    Attributes:
        name: Name of the photograph.
        x: Place of the window, from 0 (left) to 1 (right).
        y: Place of the window, from 0 (top) to 1 (bottom).
        fraction: Side of the window in sides of the largest one that fits.
        reach: Half height of the window in scene units; beyond it the photograph is mirrored.
        is_mirrored: Whether left and right are exchanged.
        gamma: Exponent of the brightness.
        gains: Factors of red, green and blue.
        tones: Colours that print the darkest, middle and lightest grey; None for a coloured photograph.
    """

    name: str
    x: float
    y: float
    fraction: float
    reach: float
    is_mirrored: bool
    gamma: float
    gains: Color
    tones: tuple[Color, Color, Color] | None


@dataclass(frozen=True, slots=True)
class Finish:
    """The natural look of a textured scene: materials, light and the focus of the lens.

    Attributes:
        subject: Material of the subject.
        far: Material of the ridge at the horizon.
        ground: Material of the ground, or of the wall that a pattern is on.
        contrast: Strength of the materials.
        saturation: Factor of all colours' distance from grey.
        light: Direction that the light comes from, in radians clockwise from the right.
        haze: How much the ridge takes on the colour of the sky.
        blur: Width of the blur of the backdrop, in scene units.
        variant: Seed of the materials' details.
    """

    subject: str
    far: str
    ground: str
    contrast: float
    saturation: float
    light: float
    haze: float
    blur: float
    variant: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A film set, as a record.

    Attributes:
        seed: Seed that the scene was drawn from.
        subject: Who acts; None in a scene that is a whole photograph.
        backdrop: Drawn, or a part of a photograph.
        finish: Finish of a textured scene; None for flat colours and whole photographs.
        light: One of `LIGHTS` for a repainted scene, whose caption names its colours; None for a scene as it was drawn.
    """

    seed: int
    subject: Subject | None
    backdrop: Backdrop | Crop
    finish: Finish | None = None
    light: str | None = field(default=None, repr=False)


def random_scene(seed: int) -> Scene:
    """Draw a scene.

    Args:
        seed: 0 or more; the same seed gives the same scene on every machine.

    Raises:
        InputError: If `seed` is negative.
    """
    if seed < 0:
        raise InputError(f"expected a seed of 0 or more, got {seed}; give a whole number such as 7")
    rng = np.random.Generator(np.random.PCG64(seed))
    backdrop = _random_backdrop(rng)
    subject = _random_subject(rng, backdrop)
    kind = rng.random()
    held_out = seed >= EVALUATION_SEED
    if kind < PHOTOGRAPH_SHARE:
        return Scene(seed, None, _random_crop(rng, held_out=held_out))
    if kind >= PHOTOGRAPH_SHARE + TEXTURED_SHARE:
        return Scene(seed, subject, backdrop)
    finish = random_finish(rng, held_out=held_out)
    in_front_of_photo = rng.random() < PHOTO_BACKDROP_SHARE
    return Scene(seed, subject, _random_crop(rng, held_out=held_out) if in_front_of_photo else backdrop, finish)


def _random_subject(rng: np.random.Generator, backdrop: Backdrop) -> Subject:
    kinds = BODIES + CREATURES + CREATURES + OBJECTS
    kind = str(rng.choice(kinds))
    names = sorted(
        COLORS,
        key=lambda name: -color_distance(COLORS[name], backdrop.far) - color_distance(COLORS[name], backdrop.sky),
    )
    return Subject(
        kind=kind,
        **random_paint(rng, names[:8]),
        **random_look(rng, kind),
        x=float(rng.uniform(-0.18, 0.18)),
        y=float(rng.uniform(0.02, 0.22)),
        size=float(rng.uniform(0.42, 0.54)),
    )


def random_paint(rng: np.random.Generator, names: Sequence[str]) -> dict[str, Any]:
    """Draw the colours of a subject, the main one of some by name, and its texture."""
    color_name = str(rng.choice(names))
    accent_name = str(rng.choice(list_others(COLORS[color_name])))
    return {
        "color_name": color_name,
        "color": jitter(rng, COLORS[color_name]),
        "accent_name": accent_name,
        "accent": jitter(rng, COLORS[accent_name]),
        "texture": str(rng.choice(TEXTURES)),
    }


def list_others(color: Color) -> list[str]:
    """List the colours that are clearly another one."""
    return [name for name, other in COLORS.items() if color_distance(other, color) > 0.45]


def random_look(rng: np.random.Generator, kind: str) -> Look:
    """Draw the look of a subject of a kind, without its colours, texture and place."""
    return Look(
        has_face=kind not in OBJECTS and (kind in CREATURES or rng.random() < 0.75),
        has_legs=kind not in OBJECTS and rng.random() < 0.6,
        has_arms=kind not in OBJECTS and rng.random() < 0.5,
        top=str(rng.choice(("none", "none", "hat", "antenna", "bow", "crown"))) if kind in BODIES else "none",
        eye_size=float(rng.uniform(0.13, 0.2)),
        mouth=str(rng.choice(("smile", "open", "flat"))),
        wobble=int(rng.integers(1 << 30)),
    )


def _random_backdrop(rng: np.random.Generator) -> Backdrop:
    names = list(COLORS)
    skies = ("sky", "cream", "pink", "white", "teal", "yellow", "violet", "lime")
    return Backdrop(
        kind=str(rng.choice(BACKDROPS)),
        sky=jitter(rng, COLORS[str(rng.choice(skies))]),
        far=jitter(rng, COLORS[str(rng.choice(names))]),
        ground=jitter(
            rng, COLORS[str(rng.choice(("green", "lime", "cream", "brown", "slate", "teal", "orange", "white")))]
        ),
        accent=jitter(rng, COLORS[str(rng.choice(names))]),
        horizon=float(rng.uniform(0.1, 0.4)),
        foreground=str(rng.choice(FOREGROUNDS)),
        variant=int(rng.integers(1 << 30)),
    )


def _random_crop(rng: np.random.Generator, *, held_out: bool) -> Crop:
    name = str(rng.choice(HELD_OUT_PHOTOGRAPHS if held_out else PHOTOGRAPHS))
    tint = COLORS[str(rng.choice(("brown", "teal", "slate", "blue")))]
    tones = jitter(rng, (0.07, 0.06, 0.08)), jitter(rng, _mix(tint, (0.5, 0.5, 0.5))), jitter(rng, (0.93, 0.9, 0.84))
    exposure = rng.uniform(0.9, 1.1)
    return Crop(
        name=name,
        x=float(rng.random()),
        y=float(rng.random()),
        fraction=float(rng.uniform(0.7, 1.0)),
        reach=float(rng.uniform(1.0, 1.4)),
        is_mirrored=bool(rng.random() < 0.5),
        gamma=float(np.exp2(rng.uniform(-0.4, 0.4))),
        gains=tuple((exposure * rng.uniform(0.85, 1.15, 3)).tolist()),
        tones=tones if name in GREY_PHOTOGRAPHS else None,
    )


def random_finish(rng: np.random.Generator, *, held_out: bool) -> Finish:
    """Draw materials and light, with or without held-out materials."""
    # Drawn materials have details of their own for every seed, so training and evaluation can share them.
    materials = MATERIALS + 3 * HELD_OUT_MATERIALS if held_out else MATERIALS
    return Finish(
        subject=str(rng.choice(materials)),
        far=str(rng.choice(("clouds", "grass", "rock", "pebbles"))),
        ground=str(rng.choice(materials)),
        contrast=float(rng.uniform(0.7, 1.3)),
        saturation=float(rng.uniform(0.45, 0.95)),
        light=float(rng.uniform(-np.pi, 0)),
        haze=float(rng.uniform(0.0, 0.45)),
        blur=float(rng.uniform(0.0, 0.05)),
        variant=int(rng.integers(1 << 30)),
    )


def color_distance(first: Color, second: Color) -> float:
    """Sum of the differences of red, green and blue."""
    return abs(first[0] - second[0]) + abs(first[1] - second[1]) + abs(first[2] - second[2])


def name_color(color: Color) -> str:
    """Return the name of the nearest of `COLORS`."""
    return min(COLORS, key=lambda name: color_distance(COLORS[name], color))


def _mix(first: Color, second: Color) -> Color:
    red, green, blue = ((a + b) / 2 for a, b in zip(first, second, strict=True))
    return red, green, blue


def jitter(rng: np.random.Generator, color: Color) -> Color:
    """A colour close to another."""
    red, green, blue = (min(max(value + rng.uniform(-0.06, 0.06), 0.04), 0.97) for value in color)
    return red, green, blue
