"""Conditions of the family "camera": how the picture is taken."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from sememe.world.condition import Family
from sememe.world.take import Floats, Picture, Take

camera = Family("camera")


@camera("the camera zooms in", name="zoom_in", factor=2.0)
@camera("the camera zooms out", name="zoom_out", factor=0.5)
@camera("the camera crash-zooms in", name="crash_zoom", factor=2.8, start=0.4, end=0.6)
def zoom(take: Take, factor: float, start: float = 0.0, end: float = 0.9) -> None:
    """Zoom to `factor` times the focal length."""
    take.camera.focal *= factor ** take.ramp(start, end)


@camera("the camera pans left", name="pan_left", pan=-1.1, tilt=0.0)
@camera("the camera pans right", name="pan_right", pan=1.1, tilt=0.0)
@camera("the camera tilts up", name="tilt_up", pan=0.0, tilt=-0.95)
@camera("the camera tilts down", name="tilt_down", pan=0.0, tilt=0.95)
def turn(take: Take, pan: float, tilt: float) -> None:
    """Turn the camera: everything shifts by the same amount."""
    take.camera.pan -= pan * take.ramp(0, 0.95)
    take.camera.tilt -= tilt * take.ramp(0, 0.95)


@camera("the camera rolls clockwise", name="roll_clockwise", quarter_turns=1.0)
@camera("the camera rolls counterclockwise", name="roll_counterclockwise", quarter_turns=-1.0)
def roll(take: Take, quarter_turns: float) -> None:
    """The camera turns about its line of sight."""
    take.camera.roll -= np.float32(np.pi / 2 * quarter_turns) * take.ramp(0, 0.95)


@camera("the horizon snaps askew", name="dutch_angle")
def dutch(take: Take) -> None:
    take.camera.roll += 0.5 * take.ramp(0.1, 0.3)
    take.camera.focal *= 1.35 ** take.ramp(0.1, 0.3)


@camera("the camera circles it to the left", name="orbit_left", split="unseen", needs_layers=True, side=-1.0)
@camera("the camera circles it to the right", name="orbit_right", split="unseen", needs_layers=True, side=1.0)
def orbit(take: Take, side: float) -> None:
    """The camera circles the subject: the subject stays, what is behind slides."""
    move = np.float32(1.5 * side) * take.ramp(0, 0.95)
    take.camera.x += move
    take.camera.pan += move


@camera("the camera dollies in while it zooms out", name="dolly_zoom_in", needs_layers=True, way=1.0)
@camera("the camera dollies out while it zooms in", name="dolly_zoom_out", needs_layers=True, way=-1.0)
def dolly_zoom(take: Take, way: float) -> None:
    """The camera moves while the lens counteracts: the subject keeps its size, the background does not."""
    take.camera.z += np.where(way > 0, 0.55, -2.2) * take.ramp(0, 0.95)
    take.camera.focal *= 1 - take.camera.z


@camera("the camera moves towards it", needs_layers=True)
def dolly_in(take: Take) -> None:
    take.camera.z += 0.52 * take.ramp(0, 0.95)


@camera("the camera rises and looks down", split="unseen", needs_layers=True)
def crane_up(take: Take) -> None:
    take.camera.y -= 1.2 * take.ramp(0, 0.95)
    take.camera.tilt -= 0.5 * take.ramp(0, 0.95)


@camera("the camera wanders in somebody's hand")
def handheld(take: Take) -> None:
    take.camera.pan += 0.28 * take.wave(1.6) + 0.12 * take.wave(3.1)
    take.camera.tilt += 0.24 * take.wave(2.3)
    take.camera.roll += 0.16 * take.wave(1.3)


@camera("the camera shakes hard")
def earthquake(take: Take) -> None:
    take.camera.tilt += 0.3 * take.wave(3.8, 0.1)
    take.camera.pan += 0.12 * take.wave(4.6, 0.1)


@camera("the horizon rocks")
def rock(take: Take) -> None:
    take.camera.roll += 0.5 * take.wave(2)


@camera("the view bobs up and down")
def bob(take: Take) -> None:
    take.camera.tilt += 0.5 * take.wave(2)


@camera("the view swings to both sides")
def glance(take: Take) -> None:
    take.camera.pan += 0.75 * take.wave(1)


@camera("the view circles")
def circle_view(take: Take) -> None:
    angle = 2 * np.pi * 1.5 * take.progress
    take.camera.pan += (0.45 * np.sin(angle)).astype(np.float32)
    take.camera.tilt += (0.45 * (1 - np.cos(angle))).astype(np.float32) * 0.8


@camera("the camera spirals in", name="spiral_in", split="unseen", factor=2.0)
@camera("the camera spirals out", name="spiral_out", split="unseen", factor=0.5)
def spiral(take: Take, factor: float) -> None:
    """The camera makes a full turn while the lens zooms in or out."""
    take.camera.roll += np.float32(1.5 * np.pi) * take.ramp(0, 0.95)
    take.camera.focal *= factor ** take.ramp(0, 0.95)


@camera("the camera zooms in and out")
def zoom_pulse(take: Take) -> None:
    take.camera.focal *= (1.75 ** (np.abs(np.sin(2 * np.pi * take.progress)))).astype(np.float32)


@camera("the camera jumps closer in three cuts")
def zoom_steps(take: Take) -> None:
    steps = np.floor(np.clip(take.progress, 0, 0.99) * 4)
    take.camera.focal *= (1.4**steps).astype(np.float32)


@camera("the view is torn to the side and back", name="whip_pan")
def whip(take: Take) -> None:
    speed = np.abs(np.sin(2 * np.pi * take.progress)) ** 2
    take.camera.pan -= 1.3 * (take.ramp(0.05, 0.45) - take.ramp(0.55, 0.95))

    def blur(_: Take, picture: Picture) -> Floats:
        frames = [
            cv2.blur(
                frame, (int(1 + 2 * round(amount * frame.shape[1] / 12)), 1), borderType=cv2.BORDER_REFLECT_101
            ).astype(np.float32, copy=False)
            for frame, amount in zip(picture.frames, speed, strict=True)
        ]
        return np.stack(frames)

    take.picture_effects.append(blur)


@camera("the picture bulges", split="unseen", amount=1.1, to="lenses")
def fisheye(take: Take, x: Floats, y: Floats, amount: float) -> tuple[Floats, Floats]:
    """The picture bulges (`amount` above 0) or is drawn to its middle (below 0)."""
    strength = amount * take.ramp(0, 0.8)
    radius = np.sqrt(x * x + y * y) + np.float32(1e-6)
    power = np.exp2(strength)[:, None, None]
    factor = (radius / 1.2) ** (power - 1)
    return x * factor, y * factor


@camera("the picture turns over like a page", axis="x")
@camera("the picture flips over upside down", name="turn_card", axis="y")
def turn_page(take: Take, axis: str) -> None:
    """The whole picture flips over like a card, about the upright ("x") or the level axis ("y")."""
    angle = np.float32(np.pi) * take.ramp(0.05, 0.9)
    narrow = np.cos(angle)
    narrow = np.where(np.abs(narrow) < 0.06, np.copysign(0.06, narrow), narrow).astype(np.float32)[:, None, None]

    def lens(current: Take, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        return (x / narrow, y) if axis == "x" else (x, y / narrow)

    def card(current: Take, picture: Picture) -> Floats:
        x, y = current.grid()
        edge = np.abs(narrow) * (current.stage.aspect if axis == "x" else 1.0)
        inside = (np.abs(x if axis == "x" else y) <= edge).astype(np.float32)
        return picture.frames * inside[..., None]

    take.lenses.append(lens)
    take.picture_effects.append(card)


@camera("a black ring closes", split="unseen")
def iris_out(take: Take) -> None:
    _shutter(take, lambda x, y, amount: np.sqrt(x * x + y * y) - (1.6 - 1.35 * amount))


@camera("lids close and open")
def blink(take: Take) -> None:
    lids = (np.sin(2 * np.pi * take.progress) ** 2).astype(np.float32)
    _shutter(take, lambda x, y, amount: np.abs(y) - (1.05 - 1.0 * amount), lids)


@camera("black bars close to a slit")
def letterbox(take: Take) -> None:
    _shutter(take, lambda x, y, amount: np.abs(y) - (1.05 - 0.68 * amount))


def _shutter(take: Take, distance: Callable[[Floats, Floats, Floats], Floats], amount: Floats | None = None) -> None:
    closing = take.ramp(0, 0.85) if amount is None else amount

    def close(current: Take, picture: Picture) -> Floats:
        x, y = current.grid()
        outside = distance(x, y, closing[:, None, None])
        keep = np.clip(0.5 - outside * current.stage.density, 0, 1)
        return np.asarray(picture.frames * keep[..., None], np.float32)

    take.picture_effects.append(close)


@camera("the background blurs", needs_layers=True, to="picture_effects")
def focus_pull(take: Take, picture: Picture) -> Floats:
    amount = take.ramp(0, 0.6)
    frames = [
        _blend_blur(frame, mask, weight)
        for frame, mask, weight in zip(picture.frames, picture.mask, amount, strict=True)
    ]
    return np.stack(frames)


@camera("everything goes out of focus", to="picture_effects")
def defocus(take: Take, picture: Picture) -> Floats:
    amount = take.ramp(0, 0.7)
    return np.stack([_blend_blur(frame, None, weight) for frame, weight in zip(picture.frames, amount, strict=True)])


def _blend_blur(frame: Floats, mask: Floats | None, amount: np.float32) -> Floats:
    if amount <= 0:
        return frame
    width = frame.shape[1] / 64
    blurred = cv2.GaussianBlur(frame, (0, 0), max(0.1, float(amount) * 5.0 * width))
    if mask is None:
        return np.asarray(blurred, np.float32)
    keep = mask[..., None]
    return np.asarray(frame * keep + blurred * (1 - keep), np.float32)
