"""Photographs in the public domain, and the crops of them that scenes show.

The files, their authors and licences are listed in `pictures/README.md`. Scenes for evaluation show only held-out
photographs, so that no figure depends on a picture seen in training.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sememe.world.drawing import FloatImage
from sememe.world.scene import Crop

_SURFACE_SIDE = 104  # pixels of a photographed surface that a layer shows: stones and blades stay larger than pixels
_FOLDER = Path(__file__).parent / "pictures"


def crop_pixels(crop: Crop, height: int, width: int) -> FloatImage:
    """Cut out and develop what `crop` selects, as an opaque layer (height, width, 4) float32 in 0..1.

    The window is the largest one of this shape that fits the photograph, times `crop.fraction`.
    """
    photograph = _read(crop.name)
    full_height, full_width = photograph.shape[:2]
    scale = crop.fraction * min(full_height / height, full_width / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = round(crop.y * (full_height - rows)), round(crop.x * (full_width - columns))
    window = photograph[top : top + rows, left : left + columns]
    window = window[:, ::-1] if crop.is_mirrored else window
    shrinks = rows > height
    small = cv2.resize(
        np.ascontiguousarray(window), (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    )
    pixels = np.ones((height, width, 4), np.float32)
    pixels[..., :3] = _develop(small.astype(np.float32) / 255, crop)
    return pixels


def relief_of(name: str, seed: int, rows: int, columns: int) -> FloatImage:
    """Return the light and dark of a part of a photographed surface, (rows, columns) with mean 0 and deviation 1."""
    grey = _read(name)[..., 0].astype(np.float32)
    rng = np.random.Generator(np.random.PCG64(seed))
    top, left = (int(rng.integers(length - _SURFACE_SIDE + 1)) for length in grey.shape)
    window = grey[top : top + _SURFACE_SIDE, left : left + _SURFACE_SIDE]
    shrinks = rows < _SURFACE_SIDE
    small = cv2.resize(window, (columns, rows), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray((small - small.mean()) / small.std(), np.float32)


def _develop(pixels: NDArray[np.floating], crop: Crop) -> NDArray[np.float32]:
    """Apply exposure and colours; a grey photograph is printed in three tones."""
    exposed = pixels.clip(0, 1) ** np.float32(crop.gamma)
    if crop.tones is not None:
        grey = exposed[..., 0]
        printed = [np.interp(grey, (0.0, 0.5, 1.0), tones) for tones in zip(*crop.tones, strict=True)]
        return np.stack(printed, axis=-1).astype(np.float32)
    return np.asarray((exposed * np.array(crop.gains, np.float32)).clip(0, 1), np.float32)


@cache
def _read(name: str) -> NDArray[np.uint8]:
    """Read a photograph, (height, width, 3) uint8 RGB."""
    path = _FOLDER / f"{name}.jpg"
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None, f"{path} is part of the package"
    return np.asarray(pixels, np.uint8)
