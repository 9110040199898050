"""Conditions of the family "motion": what the subject does with its body."""

from __future__ import annotations

import numpy as np

from sememe.world.condition import Family
from sememe.world.take import Take

motion = Family("motion", needs_layers=True)


@motion("it hops twice")
def jump(take: Take) -> None:
    arc = np.abs(np.sin(2 * np.pi * take.progress))
    take.pose.y -= (0.62 * arc).astype(np.float32)
    squash = (1 - 0.3 * np.exp(-((arc / 0.25) ** 2)) * take.ramp(0, 0.08)).astype(np.float32)
    take.pose.scale_y *= squash
    take.pose.scale_x /= np.sqrt(squash)
    take.pose.pivot = 1.0


@motion("it spins clockwise", name="spin_clockwise", turns=1.0)
@motion("it spins counterclockwise", name="spin_counterclockwise", turns=-1.0)
def spin(take: Take, turns: float) -> None:
    """Turns about its middle."""
    take.pose.rotation += np.float32(2 * np.pi * turns) * take.progress


@motion("it sways from side to side")
def sway(take: Take) -> None:
    take.pose.rotation += 0.55 * take.wave(2)
    take.pose.pivot = 1.0


@motion("it walks off to the left", name="walk_left", side=-1.0)
@motion("it walks off to the right", name="walk_right", side=1.0)
def walk(take: Take, side: float) -> None:
    """Walks out of the picture with a bobbing step."""
    take.pose.x += np.float32(1.9 * side) * take.progress
    take.pose.y -= (0.14 * np.abs(np.sin(np.pi * 5 * take.progress))).astype(np.float32)
    take.pose.rotation += 0.16 * take.wave(2.5)


@motion("it winds up and shoots off to the left", name="dash_left", side=-1.0)
@motion("it winds up and shoots off to the right", name="dash_right", side=1.0)
def dash(take: Take, side: float) -> None:
    """Winds up backwards, then shoots out of the picture."""
    take.pose.x += np.float32(side) * (2.6 * take.ramp(0.45, 0.7) - 0.35 * take.ramp(0.05, 0.35))
    take.pose.shear += np.float32(side) * (0.5 * take.ramp(0.05, 0.35) - 1.2 * take.ramp(0.42, 0.6))
    take.pose.pivot = 1.0


@motion("it shoots straight up")
def rise(take: Take) -> None:
    take.pose.y -= 2.3 * take.progress**2


@motion("it sinks out of the picture")
def sink(take: Take) -> None:
    take.pose.y += 1.9 * take.ramp(0.05, 0.9)


@motion("it falls over to the left", name="topple_left", side=-1.0)
@motion("it falls over to the right", name="topple_right", side=1.0)
def topple(take: Take, side: float) -> None:
    """Falls over about its feet and stays down."""
    take.pose.rotation += np.float32(side * np.pi / 2) * take.ramp(0.1, 0.6) ** 2
    take.pose.pivot = 1.0


@motion("it shakes")
def tremble(take: Take) -> None:
    take.pose.x += 0.3 * take.wave(3.7, 0.1)


@motion("it moves in a circle")
def circle(take: Take) -> None:
    angle = 2 * np.pi * 1.5 * take.progress
    take.pose.x += (0.45 * np.sin(angle)).astype(np.float32)
    take.pose.y -= (0.38 * (1 - np.cos(angle))).astype(np.float32)


@motion("it moves in a lying eight", split="unseen")
def figure_eight(take: Take) -> None:
    take.pose.x += (0.62 * np.sin(2 * np.pi * take.progress)).astype(np.float32)
    take.pose.y -= (0.36 * np.sin(4 * np.pi * take.progress)).astype(np.float32)


@motion("it climbs in a zigzag")
def zigzag(take: Take) -> None:
    take.pose.x += (0.55 * (2 / np.pi) * np.arcsin(np.sin(2 * np.pi * 1.5 * take.progress))).astype(np.float32)
    take.pose.y -= 0.9 * take.progress


@motion("it rolls off to the left", name="tumble_left", split="unseen", side=-1.0)
@motion("it rolls off to the right", name="tumble_right", split="unseen", side=1.0)
def tumble(take: Take, side: float) -> None:
    """Rolls over and over out of the picture."""
    take.pose.x += np.float32(1.8 * side) * take.progress
    take.pose.rotation += np.float32(2 * np.pi * 1.25 * side) * take.progress


@motion("it turns about like a paper figure")
def turn_round(take: Take) -> None:
    take.pose.scale_x *= not_zero(np.cos(2 * np.pi * 1.5 * take.progress))


@motion("it does a backflip", split="unseen")
def backflip(take: Take) -> None:
    middle = np.clip((take.progress - 0.15) / 0.7, 0, 1)
    take.pose.y -= (0.95 * np.sin(np.pi * middle)).astype(np.float32)
    take.pose.rotation -= (2 * np.pi * middle).astype(np.float32)


@motion("it crouches twice")
def duck(take: Take) -> None:
    low = (0.55 * np.sin(2 * np.pi * take.progress) ** 2).astype(np.float32)
    take.pose.scale_y *= 1 - low
    take.pose.scale_x *= 1 + 0.5 * low
    take.pose.pivot = 1.0


@motion("it beats like a heart")
def heartbeat(take: Take) -> None:
    beat = (1 + 0.5 * np.sin(3 * np.pi * take.progress) ** 2).astype(np.float32)
    take.pose.scale_x *= beat
    take.pose.scale_y *= beat


@motion("it comes towards us")
def approach(take: Take) -> None:
    grow = 2.5 ** take.ramp(0, 0.95)
    take.pose.scale_x *= grow
    take.pose.scale_y *= grow


@motion("it goes far away")
def retreat(take: Take) -> None:
    shrink = 0.25 ** take.ramp(0, 0.95)
    take.pose.scale_x *= shrink
    take.pose.scale_y *= shrink
    take.pose.y -= 0.1 * take.ramp(0, 0.95)


@motion("it dances")
def dance(take: Take) -> None:
    take.pose.shear += 0.75 * take.wave(3)
    take.pose.y -= (0.16 * np.abs(np.sin(3 * np.pi * 2 * take.progress))).astype(np.float32)
    take.pose.pivot = 1.0


@motion("it is stretched tall", name="stretch_tall", tall=1.9, wide=0.6)
@motion("it is squashed flat", name="squash_flat", tall=0.35, wide=1.7)
def stretch(take: Take, tall: float, wide: float) -> None:
    """Is drawn to another shape and stays so."""
    take.pose.scale_y *= tall ** take.ramp(0, 0.8)
    take.pose.scale_x *= wide ** take.ramp(0, 0.8)
    take.pose.pivot = 1.0


@motion("it bounces off the picture's sides")
def billiard(take: Take) -> None:
    take.pose.x += (0.7 * (2 / np.pi) * np.arcsin(np.sin(2 * np.pi * 1.1 * take.progress))).astype(np.float32)
    take.pose.y += (0.55 * (2 / np.pi) * np.arcsin(np.sin(2 * np.pi * 1.7 * take.progress))).astype(np.float32)


@motion("it swings as if hung from above", split="unseen")
def pendulum(take: Take) -> None:
    take.pose.rotation += 0.6 * take.wave(1.5)
    take.pose.pivot = -2.6


@motion("it bounds off to the left", name="hop_left", side=-1.0)
@motion("it bounds off to the right", name="hop_right", side=1.0)
def hop(take: Take, side: float) -> None:
    """Hops out of the picture in three high bounds."""
    take.pose.x += np.float32(1.7 * side) * take.progress
    take.pose.y -= (0.6 * np.abs(np.sin(3 * np.pi * take.progress))).astype(np.float32)


@motion("it is suddenly elsewhere, again and again")
def teleport(take: Take) -> None:
    places = np.array([(0, 0), (-0.6, -0.3), (0.6, 0.1), (0.1, -0.55)], np.float32)
    index = np.minimum((take.progress * 4.4).astype(int), 3)
    take.pose.x += places[index, 0]
    take.pose.y += places[index, 1]


@motion("it drops out of sight and comes back", split="unseen")
def peekaboo(take: Take) -> None:
    take.pose.y += (1.5 * np.sin(1.5 * np.pi * take.progress) ** 2).astype(np.float32)


@motion("it quivers like a spring")
def spring(take: Take) -> None:
    quiver = np.exp2(0.7 * take.wave(4, 0.1)).astype(np.float32)
    take.pose.scale_y *= quiver
    take.pose.scale_x /= np.sqrt(quiver)
    take.pose.pivot = 1.0


@motion("it whirls upwards and away", split="unseen")
def corkscrew(take: Take) -> None:
    take.pose.y -= 2.0 * take.progress**1.5
    take.pose.scale_x *= not_zero(np.cos(2 * np.pi * 2 * take.progress))


@motion("it tips over onto its head")
def flip_over(take: Take) -> None:
    take.pose.scale_y *= not_zero(np.cos(np.pi * take.ramp(0.05, 0.8)))


@motion("it drifts off into the corner, growing small")
def drift_away(take: Take) -> None:
    amount = take.ramp(0, 1.0)
    take.pose.x += 0.75 * amount
    take.pose.y -= 0.8 * amount
    take.pose.rotation += 0.9 * amount
    take.pose.scale_x *= 0.4**amount
    take.pose.scale_y *= 0.4**amount


def not_zero(values: np.ndarray) -> np.ndarray:
    """Keeps a scale away from zero, where a picture would have no inverse."""
    return np.where(np.abs(values) < 0.08, np.copysign(0.08, values), values).astype(np.float32)
