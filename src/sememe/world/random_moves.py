"""Motions and camera moves drawn at random, as parts of random conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sememe.world.motions import not_zero
from sememe.world.take import Floats, Take

Bend = Callable[[Take], None]
_LASTING = ("ramp", "power", "steps")
_PASSING = ("wave", "hops", "return", "zigzag")
_COMPASS = ("right", "down and right", "down", "down and left", "left", "up and left", "up", "up and right")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a random condition: what it does to a take, words for it, and whether it needs layers."""

    bend: Bend
    phrase: str
    needs_layers: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """A course over the time of a take that begins at 0 and stays between -1 and 1.

    Attributes:
        shape: One of `_LASTING`, which end elsewhere than they began, or of `_PASSING`.
        start: Where a ramp begins, 0..1.
        end: Where a ramp ends, after `start`.
        count: Cycles, hops, steps or the exponent.
    """

    shape: str
    start: float
    end: float
    count: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, lasting_share: float = 0.5) -> Curve:
        """Draw a course; it lasts with probability `lasting_share`."""
        shape = str(rng.choice(_LASTING if rng.random() < lasting_share else _PASSING))
        start = float(rng.choice([0.0, 0.05, 0.2, 0.4]))
        end = start + float(rng.uniform(0.2, 0.95 - start))
        counts = {
            "ramp": (1.0, 1.0),
            "power": (1.0, 2.5),
            "steps": (2.5, 4.5),
            "wave": (1.0, 4.0),
            "hops": (1.0, 4.5),
            "return": (1.0, 2.0),
            "zigzag": (0.75, 2.0),
        }
        return cls(shape, start, end, float(rng.uniform(*counts[shape])))

    @property
    def lasts(self) -> bool:
        """Whether it ends elsewhere than it began."""
        return self.shape in _LASTING

    def at(self, take: Take) -> Floats:
        """The values at the frames of a take, (num_frames,) float32."""
        time = np.clip(take.progress, 0, 1)
        if self.shape == "ramp":
            values = take.ramp(self.start, self.end)
        elif self.shape == "power":
            values = time**self.count
        elif self.shape == "steps":
            steps = round(self.count)
            values = np.floor(np.minimum(time, 0.99) * (steps + 1)) / steps
        elif self.shape == "wave":
            values = take.wave(self.count)
        elif self.shape == "hops":
            values = np.abs(np.sin(np.pi * self.count * time))
        elif self.shape == "return":
            values = np.sin(np.pi * self.count * time) ** 2
        else:
            values = 2 / np.pi * np.arcsin(np.sin(2 * np.pi * self.count * time))
        return np.asarray(values, np.float32)


def draw_motion(rng: np.random.Generator) -> Part:
    """Draw a motion of the subject: one to three of travelling, turning, growing, stretching, leaning, turning over."""
    moves = [_MOTIONS[place](rng) for place in rng.integers(len(_MOTIONS), size=int(rng.integers(1, 4)))]
    pivot = float(rng.choice([0.0, 0.0, 1.0, 1.0, -1.0]))

    def bend(take: Take) -> None:
        for move in moves:
            move.bend(take)
        take.pose.pivot = pivot

    return Part(bend, _join("it", [move.phrase for move in moves]), needs_layers=True)


def draw_camera(rng: np.random.Generator) -> Part:
    """Draw a path of the camera: one or two of turning, rolling, zooming and moving."""
    moves = [_CAMERAS[place](rng) for place in rng.integers(len(_CAMERAS), size=int(rng.integers(1, 3)))]

    def bend(take: Take) -> None:
        for move in moves:
            move.bend(take)

    phrase = _join("the camera", [move.phrase for move in moves])
    return Part(bend, phrase, needs_layers=any(move.needs_layers for move in moves))


def _join(subject: str, phrases: list[str]) -> str:
    return f"{subject} {' and '.join(dict.fromkeys(phrases))}"


def _amount(
    rng: np.random.Generator, curve: Curve, lasting: tuple[float, float], passing: tuple[float, float]
) -> float:
    return float(rng.choice([-1, 1]) * rng.uniform(*(lasting if curve.lasts else passing)))


def _manner(curve: Curve) -> str:
    manners = {"ramp": "", "power": "", "steps": " in steps", "hops": " in hops", "return": " and back"}
    return manners.get(curve.shape, " back and forth")


def _heading(x: float, y: float) -> str:
    return _COMPASS[round(np.arctan2(y, x) / (np.pi / 4)) % 8]


@dataclass(frozen=True, slots=True)
class Move:
    """A move of one number, which is drawn.

    Attributes:
        words: What it is called where the number is above 0, and below.
        lasting: Least and largest size of a course that lasts.
        passing: The same of one that passes.
        apply: Moves a take by the number at each frame.
        lasting_share: How often it lasts.
    """

    words: tuple[str, str]
    lasting: tuple[float, float]
    passing: tuple[float, float]
    apply: Callable[[Take, Floats], None]
    lasting_share: float = 0.5

    def __call__(self, rng: np.random.Generator) -> Part:
        """Draw the course and the number."""
        curve = Curve.draw(rng, lasting_share=self.lasting_share)
        amount = _amount(rng, curve, self.lasting, self.passing)

        def bend(take: Take) -> None:
            self.apply(take, np.float32(amount) * curve.at(take))

        return Part(bend, self.words[0 if amount > 0 else 1] + _manner(curve))


def _turn(take: Take, amount: Floats) -> None:
    take.pose.rotation += amount


def _grow(take: Take, amount: Floats) -> None:
    take.pose.scale_x *= np.exp2(amount)
    take.pose.scale_y *= np.exp2(amount)


def _stretch(take: Take, amount: Floats) -> None:
    factor = np.exp2(amount)
    take.pose.scale_y *= factor
    take.pose.scale_x /= factor**0.6


def _lean(take: Take, amount: Floats) -> None:
    take.pose.shear += amount


def _roll(take: Take, amount: Floats) -> None:
    take.camera.roll -= amount


def _zoom(take: Take, amount: Floats) -> None:
    take.camera.focal *= np.exp2(amount)


def _travel(rng: np.random.Generator) -> Part:
    curve, angle = Curve.draw(rng), float(rng.uniform(0, 2 * np.pi))
    reach = abs(_amount(rng, curve, (0.8, 2.3), (0.3, 0.75)))
    x, y = reach * np.cos(angle), reach * np.sin(angle)

    def bend(take: Take) -> None:
        take.pose.x += np.float32(x) * curve.at(take)
        take.pose.y += np.float32(y) * curve.at(take)

    return Part(bend, f"moves {_heading(x, y)}{_manner(curve)}")


def _flip(rng: np.random.Generator) -> Part:
    curve = Curve.draw(rng, lasting_share=1.0)
    turns, is_upright = float(rng.choice([0.5, 1.0, 1.5])), rng.random() < 0.5

    def bend(take: Take) -> None:
        scale = not_zero(np.cos(np.float32(2 * np.pi * turns) * curve.at(take)))
        if is_upright:
            take.pose.scale_x *= scale
        else:
            take.pose.scale_y *= scale

    return Part(bend, f"turns over {'sideways' if is_upright else 'head first'}{_manner(curve)}")


def _pan(rng: np.random.Generator) -> Part:
    curve, angle = Curve.draw(rng), float(rng.uniform(0, 2 * np.pi))
    reach = abs(_amount(rng, curve, (0.5, 1.2), (0.25, 0.7)))
    x, y = reach * np.cos(angle), reach * np.sin(angle)

    def bend(take: Take) -> None:
        take.camera.pan -= np.float32(x) * curve.at(take)
        take.camera.tilt -= np.float32(y) * curve.at(take)

    return Part(bend, f"turns {_heading(x, y)}{_manner(curve)}")


def _dolly(rng: np.random.Generator) -> Part:
    curve = Curve.draw(rng)
    way = abs(_amount(rng, curve, (0.3, 0.55), (0.15, 0.4)))
    amount = way if rng.random() < 0.5 else -3 * way

    def bend(take: Take) -> None:
        take.camera.z += np.float32(amount) * curve.at(take)

    return Part(bend, f"moves {'in' if amount > 0 else 'away'}{_manner(curve)}", needs_layers=True)


def _truck(rng: np.random.Generator) -> Part:
    curve, is_level = Curve.draw(rng), rng.random() < 0.6
    amount = _amount(rng, curve, (0.5, 1.3), (0.25, 0.6))

    def bend(take: Take) -> None:
        if is_level:
            take.camera.x += np.float32(amount) * curve.at(take)
        else:
            take.camera.y += np.float32(0.6 * amount) * curve.at(take)

    heading = _heading(amount, 0.0) if is_level else _heading(0.0, amount)
    return Part(bend, f"moves {heading}{_manner(curve)}", needs_layers=True)


_TURN = Move(("turns clockwise", "turns counterclockwise"), (0.6, 7.0), (0.3, 0.9), _turn)
_GROW = Move(("grows", "shrinks"), (0.6, 1.5), (0.4, 0.8), _grow)
_STRETCH = Move(("is stretched", "is squashed"), (0.5, 1.4), (0.4, 0.9), _stretch)
_LEAN = Move(("leans right", "leans left"), (0.4, 1.1), (0.4, 0.9), _lean, lasting_share=0.3)
_ROLL = Move(("rolls clockwise", "rolls counterclockwise"), (0.4, 3.2), (0.25, 0.7), _roll)
_ZOOM = Move(("zooms in", "zooms out"), (0.6, 1.5), (0.4, 0.9), _zoom)
_MOTIONS = (_travel, _travel, _travel, _TURN, _TURN, _GROW, _STRETCH, _LEAN, _flip)
_CAMERAS = (_pan, _pan, _ROLL, _ZOOM, _ZOOM, _dolly, _truck)
