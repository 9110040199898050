"""Natural surfaces for drawn layers: materials, light, shadow, haze and the blur of a lens.

A material is a relief, a field of light and dark with mean 0, which multiplies a layer's colours. Most are sums of
smooth noise at several scales (as in most natural pictures, coarse ones are strongest); some are photographed.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from sememe.world.drawing import FloatImage
from sememe.world.photographs import relief_of

_PHOTOGRAPHED = frozenset({"brick", "grass", "gravel"})
_STRENGTH = {"brick": 0.18, "clouds": 0.12, "fur": 0.2, "grass": 0.2, "gravel": 0.2, "marble": 0.2}
_MAX_DETAIL = 0.5  # cells of noise per pixel: finer ones would alias


def relief(material: str, seed: int, rows: int, columns: int, cells: float) -> FloatImage:
    """Return the light and dark of a material, (rows, columns), with mean 0.

    Args:
        material: One of `scene.MATERIALS` or `scene.HELD_OUT_MATERIALS`.
        seed: Seed of its details.
        rows: Height in pixels.
        columns: Width in pixels.
        cells: Size of the area that is covered, in scene units.
    """
    if material in _PHOTOGRAPHED:
        field = relief_of(material, seed, rows, columns)
    else:
        field = _grow(material, np.random.Generator(np.random.PCG64(seed)), rows, columns, cells)
    return np.asarray(field * np.float32(_STRENGTH.get(material, 0.18)), np.float32)


def _grow(material: str, rng: np.random.Generator, rows: int, columns: int, cells: float) -> NDArray[np.floating]:
    shape = (rows, columns)
    match material:
        case "clouds":
            return _noise(rng, shape, (1.6 * cells, 0.8 * cells), fall=0.5)
        case "wood":
            bend = _noise(rng, shape, (0.7 * cells, 0.7 * cells), fall=0.5)
            rings = np.sin(np.linspace(0, 9 * cells, rows)[:, None] + 2.2 * bend)
            return 0.7 * rings + 0.8 * _noise(rng, shape, (9 * cells, 0.8 * cells), fall=0.7)
        case "marble":
            return 1.2 - 2.4 * np.abs(_noise(rng, shape, (1.2 * cells, 1.2 * cells), fall=0.65)).clip(0, 1)
        case "fur":
            return _noise(rng, shape, (3 * cells, 9 * cells), fall=0.8)
        case "pebbles":
            return _pebbles(rng, shape, cells)
        case _:
            return _noise(rng, shape, (3 * cells, 3 * cells), fall=0.85)


def _noise(
    rng: np.random.Generator, shape: tuple[int, int], cells: tuple[float, float], fall: float
) -> NDArray[np.floating]:
    """Sum smooth noise at scales that double, each `fall` times as strong as the one before; deviation about 1."""
    total, power, strength = np.zeros(shape, np.float32), 0.0, 1.0
    for octave in range(5):
        down, across = (max(2, round(count * 2**octave)) for count in cells)
        coarse = rng.standard_normal((down, across), dtype=np.float32)
        if octave and max(down / shape[0], across / shape[1]) > _MAX_DETAIL:
            break
        total += np.float32(strength) * cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
        power += strength**2
        strength *= fall
    return np.asarray(total / np.sqrt(0.5 * power), np.float32)


def _pebbles(rng: np.random.Generator, shape: tuple[int, int], cells: float) -> NDArray[np.floating]:
    """Draw rounded stones: bright in the middle of each cell of a crooked grid, dark between them."""
    count = max(2, round(4 * cells))
    places = rng.uniform(0.1, 0.9, (count + 2, count + 2, 2))
    shades = rng.standard_normal((count + 2, count + 2))
    y, x = (np.linspace(0, count - 1e-3, length) for length in shape)
    row, column = np.floor(y).astype(int)[:, None], np.floor(x).astype(int)[None]
    nearest, shade = np.full(shape, 9.0), np.zeros(shape)
    for down in range(3):
        for across in range(3):
            place = places[row + down, column + across]
            distance = np.hypot(y[:, None] - row - place[..., 0] - down + 1, x - column - place[..., 1] - across + 1)
            shade = np.where(distance < nearest, shades[row + down, column + across], shade)
            nearest = np.minimum(distance, nearest)
    return 1.2 - 3.0 * nearest + 0.6 * shade


def cover(pixels: FloatImage, field: FloatImage, tint_seed: int) -> None:
    """Multiply a premultiplied layer's colours by a relief, and make some places warmer and some cooler."""
    rng = np.random.Generator(np.random.PCG64(tint_seed))
    tint = 0.05 * _noise(rng, field.shape, (3.0, 3.0), fall=0.5)
    for channel, side in enumerate((1, 0, -1)):
        pixels[..., channel] *= np.exp(field + np.float32(side) * tint)
    np.minimum(pixels, pixels[..., 3:], out=pixels)


def ground_relief(field: FloatImage, closeness: NDArray[np.float32], columns: int) -> FloatImage:
    """Lay a relief on the ground plane: finer and fainter towards the horizon.

    Args:
        field: The relief seen from above, (rows, columns).
        closeness: One over the distance of each row of the layer, per scene unit.
        columns: Width of the layer.
    """
    size = field.shape[0]
    distance = 1 / closeness[:, None]
    x = (np.linspace(-1, 1, columns, dtype=np.float32)[None] * distance + 4) * np.float32(size / 4)
    y = np.broadcast_to(distance * np.float32(size / 3), x.shape)
    laid = cv2.remap(
        field, np.ascontiguousarray(x, np.float32), np.ascontiguousarray(y, np.float32), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )  # fmt: skip
    return np.asarray(laid * np.minimum(closeness / closeness.max() * 1.4, 1)[:, None] ** 2, np.float32)


def light_up(pixels: FloatImage, angle: float, strength: float) -> None:
    """Light a layer from one side."""
    rows, columns = pixels.shape[:2]
    x, y = np.linspace(-1, 1, columns, dtype=np.float32), np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    level = 1 + np.float32(strength) * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y)
    pixels[..., :3] *= level[..., None].clip(0.3, 1.6)
    np.minimum(pixels, pixels[..., 3:], out=pixels)


def round_off(pixels: FloatImage, angle: float) -> None:
    """Shade a cut-out as a body that swells towards the viewer, lit from one side."""
    inside = (pixels[..., 3] > 0.5).astype(np.uint8)
    if not inside.any():
        return
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_5)
    swell = np.sqrt((1 - (1 - (depth / depth.max()).clip(0, 1)) ** 2).clip(0, 1)).astype(np.float32)
    swell = cv2.GaussianBlur(swell, (0, 0), max(0.6, pixels.shape[0] / 26)) * np.float32(depth.max())
    down, across = np.gradient(swell)
    facing = -(across * np.cos(angle) + down * np.sin(angle)) / np.sqrt(1 + across**2 + down**2)
    pixels[..., :3] *= (0.92 + 0.5 * facing).clip(0.3, 1.5)[..., None].astype(np.float32)
    np.minimum(pixels, pixels[..., 3:], out=pixels)


def remove_outline(pixels: FloatImage, width: float) -> None:
    """Replace the dark outline of a cut-out by the colours next to it; `width` is in pixels."""
    inside = (pixels[..., 3] > 0.5).astype(np.uint8)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_5)
    core = (depth > width).astype(np.float32)
    near = cv2.GaussianBlur(np.dstack([pixels[..., :3] * core[..., None], core]), (0, 0), 0.8 * width)
    weight = (1 - core) * (near[..., 3] > 0.02)
    inner = near[..., :3] / np.maximum(near[..., 3:], 0.02) * pixels[..., 3:]
    pixels[..., :3] += weight[..., None] * (inner - pixels[..., :3])


def desaturate(pixels: FloatImage, saturation: float) -> None:
    """Move all colours towards grey."""
    grey = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    pixels[..., :3] = grey[..., None] + np.float32(saturation) * (pixels[..., :3] - grey[..., None])


def soften(pixels: FloatImage, sigma: float) -> FloatImage:
    """Blur a layer; `sigma` in pixels."""
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), np.float32) if sigma > 0.1 else pixels
