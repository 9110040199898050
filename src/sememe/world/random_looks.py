"""Styles of the picture, and what happens to and around the subject, drawn at random for random conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from sememe.world.concepts import bulge, layer_grid, turn_to
from sememe.world.drawing import outline
from sememe.world.elements import falling, fill_outline
from sememe.world.random_moves import Curve, Part
from sememe.world.scene import BODIES, COLORS, Color, jitter, name_color
from sememe.world.styles import edges, luminance, map_tones
from sememe.world.take import Floats, Picture, Shard, Take, smooth_noise

Change = Callable[[Take, Floats], Floats]
"""Frames (num_frames, height, width, 3) in 0..1 to changed ones."""
Weight = Callable[[Take, Picture], Floats]
"""How much of a change shows where and when, 0..1, (num_frames, height or 1, width or 1, 1)."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture is changed to, and words for it."""

    change: Change
    phrase: str


@dataclass(frozen=True, slots=True)
class Region:
    """Where and when a look shows, words for the place, and whether it needs layers."""

    weight: Weight
    phrase: str
    needs_layers: bool


def draw_style(rng: np.random.Generator) -> Part:
    """Draw a change of the whole picture, or of a part of it."""
    look = _LOOKS[int(rng.integers(len(_LOOKS)))](rng)
    region = _draw_region(rng)

    def effect(take: Take, picture: Picture) -> Floats:
        changed = look.change(take, picture.frames)
        return np.asarray(picture.frames + (changed - picture.frames) * region.weight(take, picture), np.float32)

    phrase = f"{region.phrase} {look.phrase}"
    return Part(lambda take: take.picture_effects.append(effect), phrase, region.needs_layers)


def draw_concept(rng: np.random.Generator) -> Part:
    """Draw what happens to the subject, or before or behind it."""
    return _CONCEPTS[int(rng.integers(len(_CONCEPTS)))](rng)


def _draw_color(rng: np.random.Generator) -> Color:
    if rng.random() < 0.2:
        level = float(rng.choice([0.0, 0.05, 0.95, 1.0]))
        return (level, level, level)
    return jitter(rng, COLORS[str(rng.choice(sorted(COLORS)))])


def _draw_ink(rng: np.random.Generator) -> Floats:
    return np.array(_draw_color(rng), np.float32)


def _turn(grid: tuple[Floats, Floats], angle: float) -> tuple[Floats, Floats]:
    """Return places along and across a direction, in radians, from x and y."""
    x, y = grid
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _name(color: Floats) -> str:
    red, green, blue = (float(each) for each in color)
    return name_color((red, green, blue))


def _draw_region(rng: np.random.Generator) -> Region:
    kind = str(rng.choice(["all", "all", "all", "subject", "ground", "front", "pattern"]))
    curve = Curve.draw(rng, lasting_share=0.85)
    if curve.shape == "wave":  # would be a flashing light, which is an unseen condition
        curve = Curve("ramp", 0.0, curve.end, 1.0)
    angle, cells, phase = rng.uniform(0, 2 * np.pi), rng.uniform(1.2, 3.0), rng.uniform(0, 1)
    is_check = bool(rng.random() < 0.5)

    def weight(take: Take, picture: Picture) -> Floats:
        amount = np.abs(curve.at(take))[:, None, None, None]
        if kind in {"subject", "ground"}:
            mask = picture.mask[..., None]
            return amount * (mask if kind == "subject" else 1 - mask)
        if kind == "front":
            place = 3.2 * curve.at(take)[:, None, None] - 1.6
            return np.clip((place - _turn(take.grid(), angle)[0][None]) * take.stage.density / 2, 0, 1)[..., None]
        if kind == "pattern":
            first, second = _turn(take.grid(), angle)
            odd = np.floor(first * cells + phase) + (np.floor(second * cells) if is_check else 0)
            return amount * (odd % 2)[None, ..., None]
        return amount

    words = {
        "subject": "it",
        "ground": "all but it",
        "front": "behind a line the picture",
        "pattern": "in parts the picture",
    }
    return Region(weight, words.get(kind, "the picture"), kind in {"subject", "ground"})


def _tones(rng: np.random.Generator) -> Look:
    stops = np.array([_draw_color(rng) for _ in range(int(rng.integers(2, 6)))], np.float32)
    phrase = f"turns to tones from {_name(stops[0])} to {_name(stops[-1])}"
    return Look(lambda _, frames: map_tones(frames, stops), phrase)


def _mixed(rng: np.random.Generator) -> Look:
    matrix = (rng.dirichlet([0.5, 0.5, 0.5], size=3) * rng.uniform(0.7, 1.5, size=(3, 1))).astype(np.float32)
    offset = rng.uniform(-0.15, 0.15, size=3).astype(np.float32)
    if rng.random() < 0.4:
        matrix, offset = -matrix, offset + 1
    return Look(lambda _, frames: (frames @ matrix.T + offset).clip(0, 1), "changes its colours")


def _levels(rng: np.random.Generator) -> Look:
    gain, count = float(rng.uniform(1.0, 2.2)), int(rng.integers(1, 4))
    tint = _draw_ink(rng) * 0.7 + 0.3

    def change(_: Take, frames: Floats) -> Floats:
        return (np.round(((frames - 0.5) * gain + 0.5).clip(0, 1) * count) / count) * tint

    return Look(change, f"is reduced to few {_name(tint)} shades")


def _faded(rng: np.random.Generator) -> Look:
    colors = [_draw_ink(rng) for _ in range(2)]
    angle, strength = rng.uniform(0, 2 * np.pi), np.float32(rng.uniform(0.5, 0.95))

    def change(take: Take, frames: Floats) -> Floats:
        side = np.clip(0.5 + 0.5 * _turn(take.grid(), angle)[0], 0, 1)[None, ..., None]
        return frames * (1 - strength) + strength * (colors[0] * (1 - side) + colors[1] * side)

    return Look(change, f"fades to {_name(colors[0])}")


def _lined(rng: np.random.Generator) -> Look:
    paper, ink = _draw_ink(rng), _draw_ink(rng)

    def change(_: Take, frames: Floats) -> Floats:
        line = edges(frames)[..., None]
        return paper * (1 - line) + ink * line

    return Look(change, f"becomes {_name(ink)} lines on {_name(paper)}")


def _dotted(rng: np.random.Generator) -> Look:
    paper, ink = _draw_ink(rng), _draw_ink(rng)
    angle, cells = rng.uniform(0, np.pi / 2), rng.uniform(2.0, 4.2)

    def change(take: Take, frames: Floats) -> Floats:
        first, second = _turn(take.grid(), angle)
        screen = 0.5 + 0.25 * (np.cos(2 * np.pi * cells * first) + np.cos(2 * np.pi * cells * second))
        cover = np.clip((screen[None] - luminance(frames)[..., 0]) * 5 + 0.5, 0, 1)[..., None]
        return paper * (1 - cover) + ink * cover

    return Look(change, f"becomes {_name(ink)} dots on {_name(paper)}")


def _repeated(rng: np.random.Generator) -> Look:
    rows, columns = (int(each) for each in rng.choice([(1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (3, 3)]))

    def change(_: Take, frames: Floats) -> Floats:
        height, width = frames.shape[1:3]
        size = (-(-width // columns), -(-height // rows))
        small = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
        return np.tile(small, (1, rows, columns, 1))[:, :height, :width]

    return Look(change, f"repeats itself {rows * columns} times")


def _smeared(rng: np.random.Generator) -> Look:
    share, is_level = float(rng.uniform(0.15, 0.5)), rng.random() < 0.5

    def change(_: Take, frames: Floats) -> Floats:
        side = 2 * round(share * frames.shape[1] / 2) + 1
        return np.stack([cv2.blur(frame, (side, 1) if is_level else (1, side)) for frame in frames])

    return Look(change, f"is smeared {'sideways' if is_level else 'downwards'}")


def _coarse(rng: np.random.Generator) -> Look:
    rows, columns = (int(each) for each in rng.integers(5, 17, size=2))

    def change(_: Take, frames: Floats) -> Floats:
        height, width = frames.shape[1:3]
        small = [cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_AREA) for frame in frames]
        return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_NEAREST) for frame in small])

    return Look(change, "turns to coarse blocks")


def _split(rng: np.random.Generator) -> Look:
    reach = rng.uniform(-0.16, 0.16, size=(3, 2))

    def change(_: Take, frames: Floats) -> Floats:
        height, width = frames.shape[1:3]
        planes = [
            np.roll(frames[..., channel], (round(down * height), round(across * width)), axis=(1, 2))
            for channel, (across, down) in enumerate(reach)
        ]
        return np.stack(planes, axis=-1)

    return Look(change, "splits into its colours")


def _embossed(rng: np.random.Generator) -> Look:
    tint = _draw_ink(rng)
    across, down = (int(each) for each in rng.choice([(1, 0), (0, 1), (1, -1), (-1, 1), (-1, -1)]))

    def change(_: Take, frames: Floats) -> Floats:
        grey = luminance(frames)
        step = max(1, grey.shape[1] // 64)
        relief = grey - np.roll(grey, (down * step, across * step), axis=(1, 2))
        return (0.5 + 1.6 * relief).clip(0, 1) * (0.4 + 0.6 * tint)

    return Look(change, f"looks pressed into {_name(tint)} metal")


def _stuff(rng: np.random.Generator) -> Part:
    dark, light = _draw_color(rng), _draw_color(rng)

    def bend(take: Take) -> None:
        turn_to(take, dark, light)

    return Part(bend, f"it turns to {name_color(dark)} and {name_color(light)} stuff", needs_layers=True)


def _painted(rng: np.random.Generator) -> Part:
    inks = np.array([_draw_color(rng), _draw_color(rng)], np.float32)
    curve, speed, cells = Curve.draw(rng, lasting_share=1.0), rng.uniform(-2, 2), rng.uniform(0.8, 2.0)
    angle, is_check, strength = rng.uniform(0, np.pi), rng.random() < 0.5, np.float32(rng.uniform(0.7, 1.0))

    def effect(take: Take, subject: Floats) -> Floats:
        along, across = _turn(take.subject_grid(), angle)
        first = along[None] * cells - speed * take.progress[:, None, None]
        second = np.floor(across * cells)[None] if is_check else 0.0
        odd = ((np.floor(first) + second) % 2).astype(int)
        amount = strength * curve.at(take)[:, None, None, None]
        paint = inks[odd] * subject[..., 3:]
        colors = subject[..., :3] * (1 - amount) + paint * amount
        return np.concatenate([colors, subject[..., 3:]], axis=-1).astype(np.float32)

    names = " and ".join(_name(ink) for ink in inks)
    phrase = f"{'checks' if is_check else 'bands'} of {names} cover it"
    return Part(lambda take: take.subject_effects.append(effect), phrase, needs_layers=True)


def _warped(rng: np.random.Generator) -> Part:
    curve, is_round = Curve.draw(rng, lasting_share=0.6), rng.random() < 0.2
    (reach_x, reach_y), waves = rng.uniform(-0.35, 0.35, size=2), rng.uniform(1.5, 5.0, size=2)
    speed, teeth = rng.uniform(0, 3), int(rng.integers(3, 13))
    kind = str(rng.choice(["waves", "waves", "teeth"]))

    def warp(take: Take, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        amount = curve.at(take)[:, None, None]
        phase = 2 * np.pi * speed * take.progress[:, None, None]
        if kind == "teeth":
            factor = 1 + amount * (reach_x + reach_y * np.cos(teeth * np.arctan2(y, x) + phase))
            return (x * factor).astype(np.float32), (y * factor).astype(np.float32)
        moved_x = x + amount * reach_x * np.sin(waves[0] * y + phase)
        return moved_x.astype(np.float32), (y + amount * reach_y * np.sin(waves[1] * x + phase)).astype(np.float32)

    def bend(take: Take) -> None:
        if is_round:
            bulge(take, 2 * curve.at(take))
        take.subject_warps.append(warp)

    return Part(bend, f"its outline {'wobbles' if kind == 'waves' else 'grows teeth'}", needs_layers=True)


def _broken(rng: np.random.Generator) -> Part:
    count, is_sliced = int(rng.integers(3, 7)), rng.random() < 0.5
    places = rng.uniform(-0.9, 0.9, size=(count + 3, 2))
    angle, spins = rng.uniform(0, np.pi), rng.uniform(-3, 3, size=count + 3)
    ways = rng.normal(0, 0.5, size=(count + 3, 2)) + rng.normal(0, 1.2, size=2)
    spread, curve = rng.uniform(0, 2.0), Curve.draw(rng, lasting_share=0.8)
    pull = rng.uniform(0.6, 1.6)

    def shards(take: Take) -> list[Shard]:
        x, y = layer_grid(take)
        amount = curve.at(take)
        pieces = []
        if is_sliced:
            across = np.cos(angle) * y - np.sin(angle) * x
            number = np.clip(np.floor((across + 1.35) / 2.7 * count), 0, count - 1)
            for piece in range(count):
                side = np.float32(pull if piece % 2 else -pull)
                offset_x, offset_y = side * np.cos(angle) * amount, side * np.sin(angle) * amount
                pieces.append(Shard((number == piece).astype(np.float32), 0, 0, offset_x, offset_y, 0 * amount))
            return pieces
        nearest = np.stack([(x - cx) ** 2 + (y - cy) ** 2 for cx, cy in places]).argmin(axis=0)
        for piece, ((cx, cy), (way_x, way_y)) in enumerate(zip(places, ways, strict=True)):
            offset_x, offset_y = (way_x + spread * cx) * amount, (way_y + spread * cy) * amount
            mask = (nearest == piece).astype(np.float32)
            pieces.append(Shard(mask, float(cx), float(cy), offset_x, offset_y, spins[piece] * amount))
        return pieces

    def bend(take: Take) -> None:
        take.shards = shards

    return Part(bend, "it is cut into slices that slide" if is_sliced else "it breaks into pieces", needs_layers=True)


def _dissolved(rng: np.random.Generator) -> Part:
    curve, angle, seed = Curve.draw(rng, lasting_share=1.0), rng.uniform(0, 2 * np.pi), int(rng.integers(1000))
    cells, grain = int(rng.integers(5, 24)), rng.uniform(0.15, 0.8)

    def effect(take: Take, subject: Floats) -> Floats:
        along, _ = _turn(take.subject_grid(), angle)
        noise = smooth_noise(take.stage.height, take.stage.width, cells, seed)
        order = np.clip((along + 1.3) / 2.6, 0, 1) * (1 - grain) + grain * noise
        keep = np.clip((order[None] - 1.05 * curve.at(take)[:, None, None]) * 12 + 1, 0, 1)
        return (subject * keep[..., None]).astype(np.float32)

    return Part(lambda take: take.subject_effects.append(effect), "it dissolves", needs_layers=True)


def _particles(rng: np.random.Generator) -> Part:
    colors = tuple(_draw_color(rng) for _ in range(int(rng.integers(1, 4))))
    width = float(rng.uniform(0.05, 0.2))
    radius = (width, width * float(rng.uniform(0.6, 1.6)))
    count = int(np.clip(0.9 / (radius[0] * radius[1] * 4), 10, 60))
    speed, drift = float(rng.choice([-1, 1]) * rng.uniform(0.6, 2.0)), float(rng.uniform(0, 0.3))

    def bend(take: Take) -> None:
        falling(take, count, speed, drift, radius, colors)

    return Part(bend, f"{name_color(colors[0])} dots {'fall' if speed > 0 else 'rise'} everywhere")


def _covered(rng: np.random.Generator) -> Part:
    color, foam = _draw_ink(rng), _draw_ink(rng)
    curve, angle = Curve.draw(rng, lasting_share=0.8), rng.uniform(0, 2 * np.pi)
    cover_share, reach = rng.uniform(0.5, 1.0), rng.uniform(0.9, 2.0)
    wave, waves, is_behind = rng.uniform(0, 0.2), rng.uniform(3, 8), rng.random() < 0.25

    def overlay(take: Take) -> Floats:
        first, second = _turn(take.grid(), angle)
        swell = wave * np.sin(waves * second[None] + 2 * np.pi * 2 * take.progress[:, None, None])
        depth = first[None] - 1.35 + (reach * np.abs(curve.at(take)))[:, None, None]
        depth = depth + swell * take.ramp(0, 0.2)[:, None, None]
        cover = np.clip(depth * take.stage.density, 0, 1)
        rim = np.exp(-((depth / 0.08) ** 2)) * np.minimum(cover * 4, 1)
        alpha = np.maximum(cover * cover_share, rim)
        rgb = color * (cover * cover_share * (1 - rim))[..., None] + foam * (rim * alpha)[..., None]
        return np.concatenate([rgb, alpha[..., None]], axis=-1).astype(np.float32)

    def bend(take: Take) -> None:
        (take.behind if is_behind else take.before).append(overlay)

    heading = ("from the right", "from below", "from the left", "from above")[round(angle / (np.pi / 2)) % 4]
    return Part(bend, f"{_name(color)} comes {heading}", needs_layers=bool(is_behind))


def _shape(rng: np.random.Generator) -> Part:
    color = np.array([*_draw_color(rng), 1], np.float32)
    kind = str(rng.choice([each for each in BODIES if each != "cloud"]))
    curve, is_behind = Curve.draw(rng, lasting_share=0.6), bool(rng.random() < 0.4)
    size = rng.uniform(1.2, 1.8) if is_behind else rng.uniform(0.5, 1.3)
    place, alpha = rng.uniform(-0.6, 0.6, size=2), rng.uniform(0.6, 1.0)

    def overlay(take: Take) -> Floats:
        stage = take.stage
        corners = outline(kind, 0)
        out = np.zeros((take.num_frames, stage.height, stage.width, 4), np.float32)
        for frame, scale in zip(out, size * np.abs(curve.at(take)), strict=True):
            points = (corners * scale + place) * stage.subject_size + [stage.subject_x, stage.subject_y]
            if scale > 0.02:
                frame[:] = (fill_outline(stage, points) * alpha)[..., None] * color
        return out

    def bend(take: Take) -> None:
        (take.behind if is_behind else take.before).append(overlay)

    phrase = f"a {_name(color[:3])} {kind} grows {'behind' if is_behind else 'before'} it"
    return Part(bend, phrase, needs_layers=True)


def _shaded(rng: np.random.Generator) -> Part:
    color, curve = _draw_ink(rng), Curve.draw(rng, lasting_share=0.7)
    radius, strength, is_inside = rng.uniform(0.9, 1.6), rng.uniform(0.5, 0.95), rng.random() < 0.35

    def overlay(take: Take) -> Floats:
        x, y = take.subject_grid()
        outside = np.clip((np.hypot(x, y) - radius) * 4, 0, 1)
        shape = (1 - outside if is_inside else outside)[None]
        alpha = (strength * np.abs(curve.at(take)))[:, None, None] * shape
        return np.concatenate([color * alpha[..., None], alpha[..., None]], axis=-1).astype(np.float32)

    def bend(take: Take) -> None:
        (take.behind if is_inside else take.before).append(overlay)

    phrase = f"a {_name(color)} halo grows behind it" if is_inside else f"all around it turns {_name(color)}"
    return Part(bend, phrase, needs_layers=True)


_LOOKS = (
    _tones,
    _tones,
    _mixed,
    _mixed,
    _levels,
    _faded,
    _lined,
    _dotted,
    _repeated,
    _smeared,
    _coarse,
    _split,
    _embossed,
)
_CONCEPTS = (
    _stuff,
    _painted,
    _warped,
    _warped,
    _broken,
    _broken,
    _dissolved,
    _particles,
    _covered,
    _covered,
    _shape,
    _shaded,
)
