"""Draws the subject of a scene: body, surface, face and limbs, centred on the origin, half height 1."""

from __future__ import annotations

import numpy as np

from sememe.world.drawing import Canvas, outline, shade
from sememe.world.scene import BODIES, Color, Subject

DARK: Color = (0.10, 0.09, 0.12)
WHITE: Color = (0.98, 0.98, 0.98)


def draw_subject(canvas: Canvas, subject: Subject) -> None:
    """Draw the subject at unit size; the canvas must cover at least -1.3 to 1.3 both ways."""
    if subject.kind in BODIES:
        _draw_body(canvas, subject)
    else:
        _DRAWERS[subject.kind](canvas, subject)


def _surface(canvas: Canvas, subject: Subject, corners: np.ndarray) -> None:
    """Fill a silhouette and lay the subject's texture on it, with a dark outline."""
    canvas.polygon(corners * 1.07, DARK)
    canvas.polygon(corners, subject.color)
    if subject.texture == "plain":
        return
    inked = canvas.copy()
    _draw_texture(inked, subject)
    canvas.take_inside(corners, inked)


def _draw_texture(canvas: Canvas, subject: Subject) -> None:
    accent = subject.accent
    match subject.texture:
        case "stripes":
            for x in np.arange(-1.2, 1.2, 0.5):
                canvas.polygon([(x, -1.2), (x + 0.22, -1.2), (x + 0.52, 1.2), (x + 0.3, 1.2)], accent)
        case "bands":
            for y in (-0.62, 0.1, 0.72):
                canvas.rectangle(-1.2, y, 1.2, y + 0.24, accent)
        case "dots":
            for row, y in enumerate((-0.75, -0.25, 0.25, 0.75)):
                for x in np.arange(-1.0, 1.1, 0.6) + 0.3 * (row % 2):
                    canvas.ellipse(x, y, 0.15, 0.15, accent)
        case "checks":
            for row, y in enumerate(np.arange(-1.2, 1.2, 0.4)):
                for x in np.arange(-1.2, 1.2, 0.8) + 0.4 * (row % 2):
                    canvas.rectangle(x, y, x + 0.4, y + 0.4, accent)
        case "shaded":
            canvas.polygon([(0.3, -1.2), (1.2, -1.2), (1.2, 1.2), (-0.3, 1.2)], shade(subject.color, -0.28))
        case _:
            _draw_patches(canvas, subject)


def _draw_patches(canvas: Canvas, subject: Subject) -> None:
    rng = np.random.Generator(np.random.PCG64(subject.wobble))
    for _ in range(4):
        x, y = rng.uniform(-0.8, 0.8, 2)
        radius_x, radius_y = float(rng.uniform(0.2, 0.4)), float(rng.uniform(0.18, 0.34))
        canvas.ellipse(float(x), float(y), radius_x, radius_y, subject.accent)


def _draw_body(canvas: Canvas, subject: Subject) -> None:
    corners = outline(subject.kind, subject.wobble) * np.array([0.8, 0.8])
    if subject.has_legs:
        for x in (-0.34, 0.34):
            canvas.rectangle(x - 0.13, 0.5, x + 0.13, 1.08, DARK)
            canvas.rectangle(x - 0.08, 0.5, x + 0.08, 1.0, shade(subject.color, -0.25))
            canvas.ellipse(x + 0.06, 1.03, 0.22, 0.1, DARK)
    if subject.has_arms:
        for side in (-1, 1):
            canvas.line([(0.6 * side, 0.1), (1.0 * side, -0.25)], 0.2, DARK)
            canvas.line([(0.6 * side, 0.1), (0.98 * side, -0.22)], 0.11, shade(subject.color, -0.2))
            canvas.ellipse(1.02 * side, -0.28, 0.14, 0.14, subject.accent)
    _draw_top(canvas, subject)
    _surface(canvas, subject, corners)
    if subject.has_face:
        _draw_face(canvas, subject, -0.1)


def _draw_top(canvas: Canvas, subject: Subject) -> None:
    accent = subject.accent
    match subject.top:
        case "hat":
            canvas.rectangle(-0.55, -0.86, 0.55, -0.7, DARK)
            canvas.rectangle(-0.34, -1.22, 0.34, -0.72, DARK)
            canvas.rectangle(-0.29, -1.17, 0.29, -0.86, accent)
        case "antenna":
            canvas.line([(0, -0.7), (0.12, -1.12)], 0.09, DARK)
            canvas.ellipse(0.13, -1.12, 0.15, 0.15, DARK)
            canvas.ellipse(0.13, -1.12, 0.1, 0.1, accent)
        case "bow":
            canvas.polygon([(0, -0.82), (-0.42, -1.08), (-0.42, -0.62)], accent)
            canvas.polygon([(0, -0.82), (0.42, -1.08), (0.42, -0.62)], accent)
            canvas.ellipse(0, -0.82, 0.12, 0.12, DARK)
        case "crown":
            canvas.polygon(
                [(-0.45, -0.62), (-0.5, -1.2), (-0.2, -0.92), (0, -1.25), (0.2, -0.92), (0.5, -1.2), (0.45, -0.62)],
                accent,
            )
        case _:
            pass


def _draw_face(canvas: Canvas, subject: Subject, y: float) -> None:
    size = subject.eye_size
    for side in (-1, 1):
        canvas.ellipse(0.27 * side, y, size * 1.15, size * 1.3, DARK)
        canvas.ellipse(0.27 * side, y, size, size * 1.15, WHITE)
        canvas.ellipse(0.27 * side + 0.03, y + 0.02, size * 0.55, size * 0.6, DARK)
    if subject.mouth == "open":
        canvas.ellipse(0.0, y + 0.4, 0.17, 0.14, DARK)
        canvas.ellipse(0.0, y + 0.45, 0.1, 0.06, (0.85, 0.35, 0.35))
    elif subject.mouth == "smile":
        turn = np.linspace(0.2, np.pi - 0.2, 9)
        canvas.line(np.stack([0.26 * np.cos(turn), y + 0.3 + 0.16 * np.sin(turn)], axis=1), 0.07, DARK)
    else:
        canvas.line([(-0.2, y + 0.4), (0.2, y + 0.4)], 0.07, DARK)


def _draw_creature(canvas: Canvas, subject: Subject) -> None:
    color, accent = subject.color, subject.accent
    ears: dict[str, list[tuple[float, float]]] = {
        "cat": [(-0.62, -0.5), (-0.55, -1.15), (-0.12, -0.72)],
        "rabbit": [(-0.4, -0.5), (-0.42, -1.28), (-0.1, -1.2), (-0.08, -0.6)],
        "alien": [(-0.3, -0.6), (-0.52, -1.2), (-0.4, -1.22), (-0.16, -0.62)],
    }
    canvas.ellipse(0, 0.58, 0.58, 0.5, DARK)
    canvas.ellipse(0, 0.58, 0.52, 0.45, color)
    canvas.ellipse(0, 0.64, 0.3, 0.3, accent)
    for side in (-1, 1):
        canvas.ellipse(0.34 * side, 1.02, 0.24, 0.13, DARK)
        canvas.ellipse(0.6 * side, 0.5, 0.15, 0.24, DARK)
        canvas.ellipse(0.6 * side, 0.5, 0.1, 0.18, shade(color, -0.15))
        if subject.kind in ears:
            canvas.polygon(np.array(ears[subject.kind]) * [side, 1] * 1.04, DARK)
            canvas.polygon(np.array(ears[subject.kind]) * [0.9 * side, 0.96], color)
        elif subject.kind == "bear":
            canvas.ellipse(0.5 * side, -0.78, 0.26, 0.26, DARK)
            canvas.ellipse(0.5 * side, -0.78, 0.18, 0.18, accent)
    _surface(canvas, subject, outline("ball", 0) * [0.72, 0.62] + [0, -0.3])
    _draw_face(canvas, subject, -0.38)


def _draw_robot(canvas: Canvas, subject: Subject) -> None:
    for side in (-1, 1):
        canvas.rectangle(0.3 * side - 0.14, 0.6, 0.3 * side + 0.14, 1.1, DARK)
        canvas.line([(0.5 * side, 0.3), (0.95 * side, 0.55)], 0.2, DARK)
        canvas.ellipse(0.97 * side, 0.58, 0.15, 0.15, subject.accent)
    canvas.line([(0, -0.8), (0, -1.15)], 0.08, DARK)
    canvas.ellipse(0, -1.15, 0.13, 0.13, subject.accent)
    _surface(canvas, subject, outline("box", 0) * [0.68, 0.5] + [0, 0.42])
    canvas.rectangle(-0.62, -0.86, 0.62, -0.06, DARK)
    canvas.rectangle(-0.55, -0.8, 0.55, -0.12, shade(subject.color, 0.25))
    _draw_face(canvas, subject, -0.56)


def _draw_bird(canvas: Canvas, subject: Subject) -> None:
    for x in (-0.2, 0.2):
        canvas.line([(x, 0.7), (x, 1.08)], 0.09, DARK)
    canvas.polygon([(-0.6, 0.1), (-1.2, -0.2), (-1.1, 0.45)], shade(subject.color, -0.3))
    _surface(canvas, subject, outline("egg", 0) * [0.85, 0.82])
    canvas.ellipse(-0.25, 0.3, 0.42, 0.26, subject.accent)
    canvas.polygon([(0.6, -0.35), (1.2, -0.15), (0.6, 0.02)], (0.95, 0.6, 0.15))
    canvas.ellipse(0.35, -0.38, 0.2, 0.22, WHITE)
    canvas.ellipse(0.4, -0.36, 0.1, 0.12, DARK)


def _draw_house(canvas: Canvas, subject: Subject) -> None:
    _surface(canvas, subject, np.array([(-0.75, -0.2), (0.75, -0.2), (0.75, 1.0), (-0.75, 1.0)]))
    canvas.polygon([(-1.05, -0.15), (0, -1.15), (1.05, -0.15)], DARK)
    canvas.polygon([(-0.9, -0.2), (0, -1.05), (0.9, -0.2)], subject.accent)
    canvas.rectangle(-0.2, 0.4, 0.2, 1.0, DARK)
    for x in (-0.5, 0.5):
        canvas.rectangle(x - 0.16, 0.05, x + 0.16, 0.37, WHITE)


def _draw_car(canvas: Canvas, subject: Subject) -> None:
    canvas.polygon([(-0.6, 0.2), (-0.4, -0.5), (0.4, -0.5), (0.75, 0.2)], DARK)
    canvas.polygon([(-0.48, 0.1), (-0.33, -0.38), (0.32, -0.38), (0.58, 0.1)], (0.75, 0.9, 0.98))
    _surface(canvas, subject, outline("box", 0) * [1.15, 0.42] + [0, 0.4])
    for x in (-0.6, 0.6):
        canvas.ellipse(x, 0.78, 0.3, 0.3, DARK)
        canvas.ellipse(x, 0.78, 0.14, 0.14, subject.accent)
    canvas.ellipse(1.0, 0.3, 0.1, 0.1, (1.0, 0.95, 0.5))


def _draw_rocket(canvas: Canvas, subject: Subject) -> None:
    canvas.polygon([(-0.85, 1.05), (-0.45, 0.2), (0.45, 0.2), (0.85, 1.05), (0.3, 0.8), (-0.3, 0.8)], subject.accent)
    _surface(canvas, subject, np.array([(0, -1.15), (0.42, -0.5), (0.45, 0.8), (-0.45, 0.8), (-0.42, -0.5)]))
    canvas.ellipse(0, -0.25, 0.26, 0.26, DARK)
    canvas.ellipse(0, -0.25, 0.19, 0.19, (0.7, 0.9, 0.98))


def _draw_tree(canvas: Canvas, subject: Subject) -> None:
    canvas.rectangle(-0.18, 0.2, 0.18, 1.08, DARK)
    canvas.rectangle(-0.12, 0.2, 0.12, 1.02, (0.5, 0.33, 0.2))
    _surface(canvas, subject, outline("cloud", 0) * [0.9, 0.78] + [0, -0.35])
    for x, y in ((-0.35, -0.5), (0.3, -0.65), (0.1, -0.1)):
        canvas.ellipse(x, y, 0.13, 0.13, subject.accent)


def _draw_mushroom(canvas: Canvas, subject: Subject) -> None:
    canvas.polygon([(-0.35, 0), (0.35, 0), (0.48, 1.05), (-0.48, 1.05)], DARK)
    canvas.polygon([(-0.27, 0), (0.27, 0), (0.38, 0.98), (-0.38, 0.98)], (0.95, 0.9, 0.8))
    _surface(canvas, subject, outline("bell", 0) * [1.0, 0.68] + [0, -0.35])
    for side in (-1, 1):
        canvas.ellipse(0.14 * side, 0.42, 0.08, 0.1, DARK)


def _draw_cup(canvas: Canvas, subject: Subject) -> None:
    canvas.ellipse(0.8, 0.2, 0.36, 0.4, DARK)
    canvas.ellipse(0.8, 0.2, 0.2, 0.24, subject.accent)
    _surface(canvas, subject, np.array([(-0.75, -0.6), (0.75, -0.6), (0.58, 1.0), (-0.58, 1.0)]))
    canvas.ellipse(0, -0.6, 0.75, 0.2, DARK)
    canvas.ellipse(0, -0.58, 0.64, 0.14, subject.accent)


def _draw_cactus(canvas: Canvas, subject: Subject) -> None:
    for side, y in ((-1, -0.1), (1, 0.15)):
        canvas.line([(0, y + 0.3), (0.75 * side, y + 0.3), (0.75 * side, y - 0.3)], 0.34, DARK)
        canvas.line([(0, y + 0.3), (0.75 * side, y + 0.3), (0.75 * side, y - 0.27)], 0.22, subject.color)
    _surface(canvas, subject, outline("box", 0) * [0.38, 1.05])
    canvas.ellipse(0, -1.05, 0.2, 0.14, subject.accent)


def _draw_snowman(canvas: Canvas, subject: Subject) -> None:
    _surface(canvas, subject, outline("ball", 0) * [0.68, 0.6] + [0, 0.45])
    canvas.ellipse(0, -0.38, 0.5, 0.46, DARK)
    canvas.ellipse(0, -0.38, 0.45, 0.41, WHITE)
    canvas.rectangle(-0.36, -1.2, 0.36, -0.72, subject.accent)
    canvas.rectangle(-0.52, -0.8, 0.52, -0.68, DARK)
    for side in (-1, 1):
        canvas.ellipse(0.16 * side, -0.45, 0.07, 0.08, DARK)
    canvas.polygon([(0, -0.35), (0.5, -0.25), (0, -0.2)], (0.95, 0.55, 0.15))


def _draw_lamp(canvas: Canvas, subject: Subject) -> None:
    canvas.rectangle(-0.1, -0.2, 0.1, 1.0, DARK)
    canvas.ellipse(0, 1.0, 0.52, 0.16, DARK)
    _surface(canvas, subject, np.array([(-0.45, -1.05), (0.45, -1.05), (0.85, 0.0), (-0.85, 0.0)]))


def _draw_cake(canvas: Canvas, subject: Subject) -> None:
    _surface(canvas, subject, outline("box", 0) * [0.98, 0.5] + [0, 0.5])
    canvas.rectangle(-0.62, -0.5, 0.62, 0.1, DARK)
    canvas.rectangle(-0.56, -0.44, 0.56, 0.06, subject.accent)
    for x in (-0.3, 0.0, 0.3):
        canvas.rectangle(x - 0.06, -0.92, x + 0.06, -0.44, WHITE)
        canvas.ellipse(x, -1.02, 0.08, 0.13, (0.98, 0.75, 0.2))


_DRAWERS = {
    "cat": _draw_creature,
    "bear": _draw_creature,
    "rabbit": _draw_creature,
    "alien": _draw_creature,
    "robot": _draw_robot,
    "bird": _draw_bird,
    "house": _draw_house,
    "car": _draw_car,
    "rocket": _draw_rocket,
    "tree": _draw_tree,
    "mushroom": _draw_mushroom,
    "cup": _draw_cup,
    "cactus": _draw_cactus,
    "snowman": _draw_snowman,
    "lamp": _draw_lamp,
    "cake": _draw_cake,
}
