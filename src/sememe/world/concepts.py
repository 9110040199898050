"""Conditions of the family "concept" that change the subject itself."""

from __future__ import annotations

import cv2
import numpy as np

from sememe.world.condition import Family
from sememe.world.scene import Color
from sememe.world.take import Floats, Shard, Take, smooth_noise

concept = Family("concept", needs_layers=True)


@concept("it inflates like a balloon and floats away")
def inflate_and_float(take: Take) -> None:
    swell = take.ramp(0, 0.5)
    bulge(take, swell)
    take.pose.scale_x *= 1 + 0.75 * swell
    take.pose.scale_y *= 1 + 0.5 * swell
    take.pose.y -= 2.1 * take.ramp(0.4, 1.1) ** 1.5


def bulge(take: Take, amount: Floats) -> None:
    """Rounds the subject's outline."""

    def warp(_: Take, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        weight = amount[:, None, None] * 0.18
        return x * (1 + weight * (y * y - 0.6)), y * (1 + weight * (x * x - 0.6))

    take.subject_warps.append(warp)


@concept("it melts into a puddle", to="subject_warps")
def melt(take: Take, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    amount = take.ramp(0.02, 0.9)
    noise = smooth_noise(1, 64, 12, 11)[0]
    flow = amount[:, None, None]
    height = 1 - 0.82 * flow
    drip = 0.35 * flow * np.interp(x.ravel(), np.linspace(-2, 2, noise.size), noise).reshape(x.shape)
    source_y = 1 - (1 - y).astype(np.float64) / height + drip
    widen = 1 + 1.1 * flow * np.clip((y + 1) / 2, 0, 1.2)
    return (x / widen).astype(np.float32), source_y.astype(np.float32)


@concept("it whirls and shrinks to nothing")
def shrink_away(take: Take) -> None:
    small = np.maximum(1 - take.ramp(0, 0.85), 0.02).astype(np.float32)
    take.pose.scale_x *= small
    take.pose.scale_y *= small
    take.pose.rotation += np.float32(4 * np.pi) * take.ramp(0, 0.9)


@concept("it wobbles like jelly", to="subject_warps")
def ripple(take: Take, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    amount = take.ramp(0, 0.4)
    phase = 2 * np.pi * 2.5 * take.progress[:, None, None]
    return x + 0.34 * amount[:, None, None] * np.sin(4.0 * y + phase), y


@concept("it is wrung like a whirlpool", split="unseen", to="subject_warps")
def swirl(take: Take, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    amount = take.ramp(0, 0.95)
    angle = 5.5 * amount[:, None, None] * np.exp(-(x * x + y * y) * 0.9)
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * x - sin * y, sin * x + cos * y


@concept("it parts down the middle", split="unseen", to="shards")
def split_halves(take: Take) -> list[Shard]:
    gap = (1.9 * take.ramp(0.05, 0.95)).astype(np.float32)
    zeros = np.zeros_like(gap)
    lean = 0.4 * take.ramp(0.05, 0.95)
    x, _ = layer_grid(take)
    left = (x < 0).astype(np.float32)
    return [Shard(left, -0.4, 0.8, -gap, zeros, -lean), Shard(1 - left, 0.4, 0.8, gap, zeros, lean)]


@concept("it is cut into level slices that slide apart", to="shards")
def slice_bands(take: Take) -> list[Shard]:
    slide = (1.5 * take.ramp(0.05, 0.95)).astype(np.float32)
    zeros = np.zeros_like(slide)
    _, y = layer_grid(take)
    result = []
    for index, low in enumerate(np.arange(-1.35, 1.35, 0.45)):
        mask = ((y >= low) & (y < low + 0.45)).astype(np.float32)
        side = 1 if index % 2 else -1
        result.append(Shard(mask, 0.0, float(low), side * slide, zeros, zeros))
    return result


@concept("it shatters and the pieces drop", to="shards")
def shatter(take: Take) -> list[Shard]:
    fall = take.ramp(0.1, 1.0) ** 1.6
    return [
        Shard(mask, x, y, 0.5 * x * fall, (2.6 + 0.9 * noise) * fall, (noise - 0.5) * 4 * fall)
        for mask, x, y, noise in _cells(take)
    ]


@concept("it explodes in all directions", to="shards")
def explode(take: Take) -> list[Shard]:
    burst = take.ramp(0.08, 0.8) ** 0.8
    result = []
    for mask, x, y, noise in _cells(take):
        reach = (2.6 + noise) / max(0.35, float(np.hypot(x, y)))
        result.append(Shard(mask, x, y, x * reach * burst, y * reach * burst, (noise - 0.5) * 6 * burst))
    return result


def _cells(take: Take) -> list[tuple[Floats, float, float, float]]:
    """A fixed crooked 4x4 grid over the subject: mask, centre x, centre y, noise in 0..1."""
    rng = np.random.Generator(np.random.PCG64(5))
    x, y = layer_grid(take)
    places = [
        (float(cx + rng.uniform(-0.15, 0.15)), float(cy + rng.uniform(-0.15, 0.15)))
        for cy in (-0.9, -0.3, 0.3, 0.9)
        for cx in (-0.8, -0.25, 0.25, 0.8)
    ]
    distance = np.stack([(x - cx) ** 2 + (y - cy) ** 2 for cx, cy in places])
    nearest = distance.argmin(axis=0)
    noises = rng.random(len(places))
    return [
        ((nearest == index).astype(np.float32), cx, cy, float(noises[index])) for index, (cx, cy) in enumerate(places)
    ]


def layer_grid(take: Take) -> tuple[Floats, Floats]:
    """The pixels of the subject's layer in its half heights, two arrays (rows, columns)."""
    layer = take.stage.subject
    rows, columns = layer.pixels.shape[:2]
    x = (np.arange(columns, dtype=np.float32) + 0.5) / columns * 2 * layer.reach_x - layer.reach_x
    y = (np.arange(rows, dtype=np.float32) + 0.5) / rows * 2 * layer.reach_y - layer.reach_y
    return np.broadcast_to(x, (rows, columns)), np.broadcast_to(y[:, None], (rows, columns))


@concept("it turns to grey stone", name="turn_to_stone", dark=(0.18, 0.18, 0.2), light=(0.72, 0.72, 0.7))
@concept("it freezes to ice", name="turn_to_ice", dark=(0.25, 0.55, 0.85), light=(0.9, 1.0, 1.0))
@concept("it turns to ruby", name="turn_to_ruby", dark=(0.35, 0.0, 0.08), light=(1.0, 0.35, 0.45))
@concept("it turns to a black shadow", name="turn_to_shadow", dark=(0.0, 0.0, 0.0), light=(0.06, 0.05, 0.08))
def turn_to(take: Take, dark: Color, light: Color) -> None:
    """The subject's surface becomes another stuff, from `dark` in its shadows to `light` in its lights."""
    amount = take.ramp(0, 0.6)[:, None, None]
    low, high = np.array(dark, np.float32), np.array(light, np.float32)

    def effect(_: Take, subject: Floats) -> Floats:
        # Plane by plane: operations along a last axis of three take several times as long.
        red, green, blue, alpha = np.moveaxis(subject, -1, 0)
        grey = (red + green + blue) / np.float32(3)
        out = subject.copy()
        for channel, plane in enumerate((red, green, blue)):
            stuff = low[channel] * alpha + (high - low)[channel] * grey
            out[..., channel] = plane * (1 - amount) + stuff * amount
        return out

    take.subject_effects.append(effect)


@concept("it turns to gold")
def turn_to_gold(take: Take) -> None:
    turn_to(take, (0.45, 0.25, 0.0), (1.0, 0.95, 0.35))

    def gleam(current: Take, subject: Floats) -> Floats:
        x, y = current.subject_grid()
        band = np.exp(-(((x + y) / 1.4 - 3.6 * current.progress[:, None, None] + 1.9) ** 2) * 12)
        light = (band * current.ramp(0.1, 0.5)[:, None, None])[..., None] * subject[..., 3:]
        return np.concatenate([np.minimum(subject[..., :3] + light, subject[..., 3:]), subject[..., 3:]], axis=-1)

    take.subject_effects.append(gleam)


@concept("it fades until it is invisible", to="subject_effects")
def vanish(take: Take, subject: Floats) -> Floats:
    amount = 1 - 0.97 * take.ramp(0, 0.85)
    return subject * amount[:, None, None, None]


@concept("it becomes a hovering ghost", split="unseen")
def ghost(take: Take) -> None:
    turn_to(take, (0.6, 0.75, 0.85), (0.95, 1.0, 1.0))
    amount = 1 - 0.45 * take.ramp(0, 0.5)
    take.pose.y -= 0.45 * take.ramp(0, 1)
    take.pose.x += 0.16 * take.wave(2)
    take.subject_effects.append(lambda _, subject: subject * amount[:, None, None, None])


@concept("it dissolves into smoke from its feet up", name="dissolve_to_smoke", way=-1.0, to="subject_effects")
@concept("it crumbles to sand from its head down", name="crumble_to_sand", way=1.0, to="subject_effects")
def dissolve(take: Take, subject: Floats, way: float) -> Floats:
    """Comes apart into grains, from its feet up as smoke (`way` -1) or from its head down as sand (1)."""
    amount = take.ramp(0.05, 0.95)
    stage = take.stage
    _, y = take.subject_grid()
    noise = smooth_noise(stage.height, stage.width, 22, 3)
    order = np.clip((-way * y + 1.2) / 2.4, 0, 1) * -1 + 1 if way > 0 else np.clip((1.2 - y) / 2.4, 0, 1)
    order = 0.7 * order + 0.3 * noise
    out = np.zeros_like(subject)
    for index, level in enumerate(amount):
        keep = (order >= level * 1.02).astype(np.float32) if level > 0 else np.ones_like(order)
        loose = subject[index] * (1 - keep[..., None]) * (noise > 0.5)[..., None] * max(0.0, 1.4 * (1 - level))
        across, down = 0.12 * level * stage.height, way * 0.45 * level * stage.height
        shift = np.array([[1, 0, across], [0, 1, down]], np.float32)
        flown = cv2.warpAffine(loose, shift, (stage.width, stage.height))
        still = subject[index] * keep[..., None]
        out[index] = flown + still * (1 - flown[..., 3:])
    return out


@concept("it burns away from below", split="unseen", to="subject_effects")
def burn(take: Take, subject: Floats) -> Floats:
    amount = take.ramp(0.02, 0.95)[:, None, None]
    stage = take.stage
    _, y = take.subject_grid()
    order = np.clip((1.25 - y) / 2.6, 0, 1) * 0.75 + 0.25 * smooth_noise(stage.height, stage.width, 12, 7)
    left = order - amount * 1.15 + 0.08
    keep = np.clip(left * 30, 0, 1)[..., None]
    glow = (np.exp(-((left / 0.09) ** 2)) * np.minimum(amount * 8, 1))[..., None]
    char = np.clip(left / 0.25, 0.15, 1)[..., None]
    color = subject[..., :3] * (1 - (1 - char) * np.minimum(amount * 8, 1)[..., None])
    color = color * (1 - glow) + np.array([1.0, 0.55, 0.05], np.float32) * glow * subject[..., 3:]
    return np.concatenate([color * keep, subject[..., 3:] * keep], axis=-1)


@concept("bands of all colours run over it", to="subject_effects")
def rainbow(take: Take, subject: Floats) -> Floats:
    amount = 0.85 * take.ramp(0, 0.4)[:, None, None, None]
    _, y = take.subject_grid()
    phase = 2 * np.pi * (0.5 * y[None] - 1.5 * take.progress[:, None, None])
    bands = np.stack([0.5 + 0.5 * np.cos(phase + shift) for shift in (0, 2.1, 4.2)], axis=-1)
    return np.concatenate(
        [subject[..., :3] * (1 - amount) + bands * subject[..., 3:] * amount, subject[..., 3:]], axis=-1
    ).astype(np.float32)


@concept("it turns into a hologram", split="unseen")
def hologram(take: Take) -> None:
    turn_to(take, (0.0, 0.35, 0.45), (0.5, 1.0, 1.0))
    amount = take.ramp(0, 0.4)[:, None, None]

    def effect(current: Take, subject: Floats) -> Floats:
        _, y = current.grid()
        lines = 0.5 + 0.5 * np.sin(2 * np.pi * (4.0 * y[None] - 3 * current.progress[:, None, None]))
        keep = 1 - amount * (0.2 + 0.6 * lines)
        return subject * keep[..., None].astype(np.float32)

    take.subject_effects.append(effect)


@concept("it turns into coarse blocks", to="subject_effects")
def blocks(take: Take, subject: Floats) -> Floats:
    amount = take.ramp(0, 0.4)
    height, width = subject.shape[1:3]
    out = subject.copy()
    for index, level in enumerate(amount):
        if level > 0.25:
            cells = 16 if level < 0.75 else 9
            coarse = cv2.resize(subject[index], (cells * width // height, cells), interpolation=cv2.INTER_AREA)
            out[index] = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    return out


@concept("copies of it step out to both sides", split="unseen", to="subject_effects")
def multiply(take: Take, subject: Floats) -> Floats:
    amount = take.ramp(0.05, 0.85)
    stage = take.stage
    out = np.empty_like(subject)
    for index, level in enumerate(amount):
        shift = float(0.78 * level * stage.density)
        frame = np.zeros_like(subject[index])
        for side in (-1, 1):
            move = np.array([[1, 0, side * shift], [0, 1, -0.1 * shift]], np.float32)
            copy = cv2.warpAffine(subject[index], move, (stage.width, stage.height))
            frame = frame * (1 - copy[..., 3:]) + copy
        out[index] = frame * (1 - subject[index][..., 3:]) + subject[index]
    return out


@concept("it grows spikes", to="subject_warps")
def spikes(take: Take, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    amount = take.ramp(0, 0.7)
    angle = np.arctan2(y, x)
    teeth = np.abs(((angle * 12 / (2 * np.pi)) % 1) * 2 - 1)
    factor = 1 + amount[:, None, None] * (0.25 - 0.62 * teeth)
    return (x * factor).astype(np.float32), (y * factor).astype(np.float32)


@concept("its upper half slides off", to="shards")
def lose_head(take: Take) -> list[Shard]:
    slide = (1.7 * take.ramp(0.25, 0.95) ** 1.5).astype(np.float32)
    turn = 0.7 * take.ramp(0.25, 0.95)
    zeros = np.zeros_like(slide)
    x, y = layer_grid(take)
    top = (y < -0.35 * x).astype(np.float32)
    return [
        Shard(1 - top, 0, 0.5, zeros, zeros, zeros),
        Shard(top, 0, -0.5, slide, -0.35 * slide + 0.6 * slide**2, turn),
    ]
