"""Where the subject of a clip is, moment after moment: of a mask, and, without one, of what moves."""

import numpy as np
from jaxtyping import Float

from sememe.video import Clip

Path2D = Float[np.ndarray, "moment 2"]
"""Centre of the subject as x and y from 0 to 1, at each moment; not a number where none is seen."""

_LEAST_COVER = 0.008  # share of the picture that the subject must cover to have a place
_CELLS = 8


def find_path(cover: Float[np.ndarray, "moment row column"]) -> Path2D:
    """Return the centre of the subject.

    Args:
        cover: How much of each cell is subject, 0 to 1.
    """
    _, rows, columns = cover.shape
    total = cover.sum(axis=(1, 2))
    x = cover.sum(axis=1) @ ((np.arange(columns) + 0.5) / columns)
    y = cover.sum(axis=2) @ ((np.arange(rows) + 0.5) / rows)
    is_seen = total >= _LEAST_COVER * rows * columns
    path = np.stack([x, y], axis=1) / np.maximum(total, 1e-9)[:, None]
    return np.where(is_seen[:, None], path, np.nan).astype(np.float64)


def find_moving_path(clip: Clip) -> Path2D:
    """Return the centre of what moves, without knowing what it is.

    What moves is what differs from the clip's own median over time, in 8x8 cells, beyond what the median cell of the
    same frame differs. So it is a subject that is on its way most of the time, before a camera at rest: one that
    stays in a place for half of the clip is a part of the median, and what changes the whole picture hides any path.

    64 scripts of movements alone (64x64 pixels, 33 frames): correlation with the path of the true mask 0.968 of
    renders, 0.913 after the built-in autoencoder, 0.094 of another script's. 48 others, of walks to either side, hops
    and rises alone, after which a subject stays where it arrived: 0.594 of renders. With squared differences, or with
    what three quarters or nine tenths of the cells differ taken off, less: 0.74 to 0.90 after the autoencoder.
    """
    frames = clip.frames.astype(np.float32)
    differences = np.abs(frames - np.median(frames, axis=0)).mean(axis=-1)
    rows, columns = (np.arange(_CELLS) * side // _CELLS for side in (clip.height, clip.width))
    sums = np.add.reduceat(np.add.reduceat(differences, rows, axis=1), columns, axis=2)
    areas = np.diff([*rows, clip.height])[:, None] * np.diff([*columns, clip.width])
    cells = sums / areas
    cells = np.maximum(cells - np.median(cells, axis=(1, 2), keepdims=True), 0.0)
    return find_path(cells / max(float(cells.max()), 1e-9))


def correlate_paths(true: Path2D, path: Path2D) -> float | None:
    """Return the correlation of two paths, of both coordinates about their means together.

    Where the subject should be seen and is not, it is taken to be at the mean of its path: a lost subject tells
    nothing. None if it should be seen at fewer than three moments, or does not move by a hundredth of the picture.

    Args:
        true: Path as it should be.
        path: Path as it is.
    """
    is_seen = ~np.isnan(true[:, 0])
    if is_seen.sum() < 3:
        return None
    wanted, found = true[is_seen], path[is_seen]
    wanted = wanted - wanted.mean(axis=0)
    if np.sqrt((wanted**2).sum(axis=1).mean()) < 0.01:
        return None
    is_found = ~np.isnan(found[:, 0])
    if not is_found.any():
        return 0.0
    found = np.where(is_found[:, None], found - found[is_found].mean(axis=0), 0.0)
    scale = float(np.sqrt((wanted**2).sum() * (found**2).sum()))
    return round(float((wanted * found).sum()) / scale, 5) if scale > 1e-9 else 0.0
