"""Conditions of the family "motion": what the subject does with its body."""

from __future__ import annotations

import numpy as np

from sememe.world.take import Take


def jump(take: Take) -> None:
    """Two hops with a squash at each landing."""
    arc = np.abs(np.sin(2 * np.pi * take.progress))
    take.pose.y -= (0.62 * arc).astype(np.float32)
    squash = (1 - 0.3 * np.exp(-((arc / 0.25) ** 2)) * take.ramp(0, 0.08)).astype(np.float32)
    take.pose.scale_y *= squash
    take.pose.scale_x /= np.sqrt(squash)
    take.pose.pivot = 1.0


def spin(take: Take, turns: float) -> None:
    """Turns about its middle."""
    take.pose.rotation += np.float32(2 * np.pi * turns) * take.progress


def sway(take: Take) -> None:
    """Leans to both sides on its feet."""
    take.pose.rotation += 0.55 * take.wave(2)
    take.pose.pivot = 1.0


def walk(take: Take, side: float) -> None:
    """Walks out of the picture with a bobbing step."""
    take.pose.x += np.float32(1.9 * side) * take.progress
    take.pose.y -= (0.14 * np.abs(np.sin(np.pi * 5 * take.progress))).astype(np.float32)
    take.pose.rotation += 0.16 * take.wave(2.5)


def dash(take: Take, side: float) -> None:
    """Winds up backwards, then shoots out of the picture."""
    take.pose.x += np.float32(side) * (2.6 * take.ramp(0.45, 0.7) - 0.35 * take.ramp(0.05, 0.35))
    take.pose.shear += np.float32(side) * (0.5 * take.ramp(0.05, 0.35) - 1.2 * take.ramp(0.42, 0.6))
    take.pose.pivot = 1.0


def rise(take: Take) -> None:
    """Goes straight up and out, accelerating."""
    take.pose.y -= 2.3 * take.progress**2


def sink(take: Take) -> None:
    """Goes straight down and out."""
    take.pose.y += 1.9 * take.ramp(0.05, 0.9)


def topple(take: Take, side: float) -> None:
    """Falls over about its feet and stays down."""
    take.pose.rotation += np.float32(side * np.pi / 2) * take.ramp(0.1, 0.6) ** 2
    take.pose.pivot = 1.0


def tremble(take: Take) -> None:
    """Shakes sideways fast and wide."""
    take.pose.x += 0.3 * take.wave(3.7, 0.1)


def circle(take: Take) -> None:
    """Moves once and a half around a circle."""
    angle = 2 * np.pi * 1.5 * take.progress
    take.pose.x += (0.45 * np.sin(angle)).astype(np.float32)
    take.pose.y -= (0.38 * (1 - np.cos(angle))).astype(np.float32)


def figure_eight(take: Take) -> None:
    """Moves along a lying eight."""
    take.pose.x += (0.62 * np.sin(2 * np.pi * take.progress)).astype(np.float32)
    take.pose.y -= (0.36 * np.sin(4 * np.pi * take.progress)).astype(np.float32)


def zigzag(take: Take) -> None:
    """Climbs in sharp turns from side to side."""
    take.pose.x += (0.55 * (2 / np.pi) * np.arcsin(np.sin(2 * np.pi * 1.5 * take.progress))).astype(np.float32)
    take.pose.y -= 0.9 * take.progress


def tumble(take: Take, side: float) -> None:
    """Rolls over and over out of the picture."""
    take.pose.x += np.float32(1.8 * side) * take.progress
    take.pose.rotation += np.float32(2 * np.pi * 1.25 * side) * take.progress


def turn_round(take: Take) -> None:
    """Turns about its upright axis like a paper figure, twice."""
    take.pose.scale_x *= _not_zero(np.cos(2 * np.pi * 1.5 * take.progress))


def backflip(take: Take) -> None:
    """Leaps up, turns over once in the air, and lands."""
    middle = np.clip((take.progress - 0.15) / 0.7, 0, 1)
    take.pose.y -= (0.95 * np.sin(np.pi * middle)).astype(np.float32)
    take.pose.rotation -= (2 * np.pi * middle).astype(np.float32)


def duck(take: Take) -> None:
    """Crouches to half its height, twice."""
    low = (0.55 * np.sin(2 * np.pi * take.progress) ** 2).astype(np.float32)
    take.pose.scale_y *= 1 - low
    take.pose.scale_x *= 1 + 0.5 * low
    take.pose.pivot = 1.0


def heartbeat(take: Take) -> None:
    """Swells and shrinks in three beats."""
    beat = (1 + 0.5 * np.sin(3 * np.pi * take.progress) ** 2).astype(np.float32)
    take.pose.scale_x *= beat
    take.pose.scale_y *= beat


def approach(take: Take) -> None:
    """Comes towards the camera until it fills the picture."""
    grow = 2.5 ** take.ramp(0, 0.95)
    take.pose.scale_x *= grow
    take.pose.scale_y *= grow


def retreat(take: Take) -> None:
    """Goes away towards the horizon."""
    shrink = 0.25 ** take.ramp(0, 0.95)
    take.pose.scale_x *= shrink
    take.pose.scale_y *= shrink
    take.pose.y -= 0.1 * take.ramp(0, 0.95)


def dance(take: Take) -> None:
    """Leans its upper body to the beat and hops."""
    take.pose.shear += 0.75 * take.wave(3)
    take.pose.y -= (0.16 * np.abs(np.sin(3 * np.pi * 2 * take.progress))).astype(np.float32)
    take.pose.pivot = 1.0


def stretch(take: Take, tall: float, wide: float) -> None:
    """Is drawn to another shape and stays so."""
    take.pose.scale_y *= tall ** take.ramp(0, 0.8)
    take.pose.scale_x *= wide ** take.ramp(0, 0.8)
    take.pose.pivot = 1.0


def billiard(take: Take) -> None:
    """Bounces off the sides of the picture."""
    take.pose.x += (0.7 * (2 / np.pi) * np.arcsin(np.sin(2 * np.pi * 1.1 * take.progress))).astype(np.float32)
    take.pose.y += (0.55 * (2 / np.pi) * np.arcsin(np.sin(2 * np.pi * 1.7 * take.progress))).astype(np.float32)


def pendulum(take: Take) -> None:
    """Swings as if hung from above the picture."""
    take.pose.rotation += 0.6 * take.wave(1.5)
    take.pose.pivot = -2.6


def hop(take: Take, side: float) -> None:
    """Hops out of the picture in three high bounds."""
    take.pose.x += np.float32(1.7 * side) * take.progress
    take.pose.y -= (0.6 * np.abs(np.sin(3 * np.pi * take.progress))).astype(np.float32)


def teleport(take: Take) -> None:
    """Is suddenly elsewhere, again and again."""
    places = np.array([(0, 0), (-0.6, -0.3), (0.6, 0.1), (0.1, -0.55)], np.float32)
    index = np.minimum((take.progress * 4.4).astype(int), 3)
    take.pose.x += places[index, 0]
    take.pose.y += places[index, 1]


def peekaboo(take: Take) -> None:
    """Drops below the edge, comes back and drops again."""
    take.pose.y += (1.5 * np.sin(1.5 * np.pi * take.progress) ** 2).astype(np.float32)


def spring(take: Take) -> None:
    """Quivers up and down like a coil that was let go."""
    quiver = np.exp2(0.7 * take.wave(4, 0.1)).astype(np.float32)
    take.pose.scale_y *= quiver
    take.pose.scale_x /= np.sqrt(quiver)
    take.pose.pivot = 1.0


def corkscrew(take: Take) -> None:
    """Rises out of the picture while it whirls about its upright axis."""
    take.pose.y -= 2.0 * take.progress**1.5
    take.pose.scale_x *= _not_zero(np.cos(2 * np.pi * 2 * take.progress))


def flip_over(take: Take) -> None:
    """Tips forward over its level axis until it stands on its head."""
    take.pose.scale_y *= _not_zero(np.cos(np.pi * take.ramp(0.05, 0.8)))


def drift_away(take: Take) -> None:
    """Floats to the upper corner, growing small and turning slowly."""
    amount = take.ramp(0, 1.0)
    take.pose.x += 0.75 * amount
    take.pose.y -= 0.8 * amount
    take.pose.rotation += 0.9 * amount
    take.pose.scale_x *= 0.4**amount
    take.pose.scale_y *= 0.4**amount


def _not_zero(values: np.ndarray) -> np.ndarray:
    """Keeps a scale away from zero, where a picture would have no inverse."""
    return np.where(np.abs(values) < 0.08, np.copysign(0.08, values), values).astype(np.float32)
