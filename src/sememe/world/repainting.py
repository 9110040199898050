"""The same scene in another look, as the true result of an edit of appearance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sememe.errors import InputError
from sememe.world.scene import (
    COLORS,
    EVALUATION_SEED,
    LIGHTS,
    PATTERN_BACKDROPS,
    Backdrop,
    Color,
    Crop,
    Scene,
    jitter,
    list_others,
    random_finish,
    random_paint,
)

_SAME_SHAPES = (("hills", "meadow"), ("desert", "snowfield"), tuple(sorted(PATTERN_BACKDROPS)))
"""Backdrops whose layers cover the same parts of the picture."""
_GROUND_KINDS = frozenset({"beach", "desert", "meadow", "snowfield"})
_WALL_KINDS = frozenset({"room", "gradient"})


def repaint(scene: Scene, seed: int) -> Scene:
    """Give a scene another look.

    Under every condition, depth and mask are those of `scene`, byte for byte: positions, silhouettes, the foreground
    and the focus of the lens stay. What changes are the subject's colours and texture, the colours of the place, its
    kind where the shapes are the same (a desert may become a field of snow, stripes may become dots), materials, and
    the light: day, dusk, night or mist. The caption names them, with all colours of the subject and of the place.

    A photograph keeps its content: it is printed in tones of one colour, and the light changes.

    Args:
        scene: As drawn, or repainted before.
        seed: 0 or more. Any 32 consecutive seeds differ in the light or the colour of the place.

    Raises:
        InputError: If `seed` is negative.
    """
    if seed < 0:
        raise InputError(f"expected a seed of 0 or more, got {seed}; give a whole number such as 7")
    names, lights = tuple(COLORS), tuple(LIGHTS)
    name = names[(seed + scene.seed) % len(names)]
    light = lights[(seed + seed // (len(names) * len(lights) // 2)) % len(lights)]
    rng = np.random.Generator(np.random.PCG64([scene.seed, seed]))
    finish = None
    if scene.finish is not None:
        finish = replace(random_finish(rng, held_out=scene.seed >= EVALUATION_SEED), blur=scene.finish.blur)
    backdrop: Backdrop | Crop = (
        _print_in_tones(rng, scene.backdrop, COLORS[name])
        if isinstance(scene.backdrop, Crop)
        else _paint_backdrop(rng, scene.backdrop, COLORS[name])
    )
    subject = scene.subject
    if subject is not None:
        subject = replace(subject, **random_paint(rng, list_others(COLORS[name])))
    return Scene(scene.seed, subject, backdrop, finish, light)


def _paint_backdrop(rng: np.random.Generator, backdrop: Backdrop, main: Color) -> Backdrop:
    kinds = next((kinds for kinds in _SAME_SHAPES if backdrop.kind in kinds), (backdrop.kind,))
    kind = str(rng.choice(kinds))
    others = [COLORS[name] for name in list_others(main)]
    sky, far, ground, accent = (jitter(rng, others[int(rng.integers(len(others)))]) for _ in range(4))
    main = jitter(rng, main)
    if kind in _WALL_KINDS:
        sky = main
    elif kind in _GROUND_KINDS:
        ground = main
    else:
        far = main
    return replace(backdrop, kind=kind, sky=sky, far=far, ground=ground, accent=accent)


def _print_in_tones(rng: np.random.Generator, crop: Crop, main: Color) -> Crop:
    """Print a photograph in tones of one colour, from dark to light."""
    red, green, blue = main
    dark = (0.12 * red, 0.12 * green, 0.12 * blue)
    light = (0.5 + 0.5 * red, 0.5 + 0.5 * green, 0.5 + 0.5 * blue)
    return replace(crop, gamma=float(np.exp2(rng.uniform(-0.4, 0.4))), tones=(dark, jitter(rng, main), light))
