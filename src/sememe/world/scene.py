"""What stands in front of the camera: a `Scene` is a record of choices, drawn from a seed.

A scene holds no pixels. `random_scene` picks every parameter with NumPy's PCG64 generator, so that one seed gives
the same scene on every machine. `world.stage` turns the record into layers, `world.renderer` films them.

Coordinates: x to the right, y down, the picture spans y from -1 to 1 and x from -aspect to aspect.
"""

from __future__ import annotations

from dataclasses import dataclass

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

Color = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Subject:
    """The one who acts: silhouette, surface, face and limbs."""

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


@dataclass(frozen=True, slots=True)
class Backdrop:
    """Everything behind and before the subject."""

    kind: str
    sky: Color
    far: Color
    ground: Color
    accent: Color
    horizon: float  # y of the horizon
    foreground: str
    variant: int  # seed of the placement of hills, houses, clouds and so on


@dataclass(frozen=True, slots=True)
class Scene:
    """A film set, as a record: the seed it was drawn from, a subject and a backdrop."""

    seed: int
    subject: Subject
    backdrop: Backdrop


def random_scene(seed: int) -> Scene:
    """Draw a scene.

    Args:
        seed: a whole number from 0 on; the same number gives the same scene on every machine.

    Raises:
        InputError: if `seed` is negative.
    """
    if seed < 0:
        raise InputError(f"expected a seed of 0 or more, got {seed}; give a whole number such as 7")
    rng = np.random.Generator(np.random.PCG64(seed))
    backdrop = _random_backdrop(rng)
    return Scene(seed=seed, subject=_random_subject(rng, backdrop), backdrop=backdrop)


def _random_subject(rng: np.random.Generator, backdrop: Backdrop) -> Subject:
    kinds = BODIES + CREATURES + CREATURES + OBJECTS
    kind = str(rng.choice(kinds))
    names = sorted(
        COLORS, key=lambda name: -_distance(COLORS[name], backdrop.far) - _distance(COLORS[name], backdrop.sky)
    )
    color_name = str(rng.choice(names[:8]))
    accent_name = str(rng.choice([name for name in COLORS if _distance(COLORS[name], COLORS[color_name]) > 0.45]))
    return Subject(
        kind=kind,
        color_name=color_name,
        color=_jitter(rng, COLORS[color_name]),
        accent_name=accent_name,
        accent=_jitter(rng, COLORS[accent_name]),
        texture=str(rng.choice(TEXTURES)),
        has_face=kind not in OBJECTS and (kind in CREATURES or rng.random() < 0.75),
        has_legs=kind not in OBJECTS and rng.random() < 0.6,
        has_arms=kind not in OBJECTS and rng.random() < 0.5,
        top=str(rng.choice(("none", "none", "hat", "antenna", "bow", "crown"))) if kind in BODIES else "none",
        eye_size=float(rng.uniform(0.13, 0.2)),
        mouth=str(rng.choice(("smile", "open", "flat"))),
        wobble=int(rng.integers(1 << 30)),
        x=float(rng.uniform(-0.18, 0.18)),
        y=float(rng.uniform(0.02, 0.22)),
        size=float(rng.uniform(0.42, 0.54)),
    )


def _random_backdrop(rng: np.random.Generator) -> Backdrop:
    names = list(COLORS)
    skies = ("sky", "cream", "pink", "white", "teal", "yellow", "violet", "lime")
    return Backdrop(
        kind=str(rng.choice(BACKDROPS)),
        sky=_jitter(rng, COLORS[str(rng.choice(skies))]),
        far=_jitter(rng, COLORS[str(rng.choice(names))]),
        ground=_jitter(
            rng, COLORS[str(rng.choice(("green", "lime", "cream", "brown", "slate", "teal", "orange", "white")))]
        ),
        accent=_jitter(rng, COLORS[str(rng.choice(names))]),
        horizon=float(rng.uniform(0.1, 0.4)),
        foreground=str(rng.choice(FOREGROUNDS)),
        variant=int(rng.integers(1 << 30)),
    )


def _distance(first: Color, second: Color) -> float:
    return sum(abs(a - b) for a, b in zip(first, second, strict=True))


def _jitter(rng: np.random.Generator, color: Color) -> Color:
    red, green, blue = (float(np.clip(value + rng.uniform(-0.06, 0.06), 0.04, 0.97)) for value in color)
    return red, green, blue
