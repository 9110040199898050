"""Clips shown together: as rows of frames on a contact sheet, or beside each other in one clip."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from sememe.errors import InputError
from sememe.video.clip import Clip, Image
from sememe.video.resizing import pick_frames, resize_image

_GAP = 4
_TEXT_HEIGHT = 20
_FONT_SIZE = 13
_PAPER = (250, 250, 247)
_INK = (40, 40, 40)


@dataclass(frozen=True)
class SheetRow:
    """One row of a contact sheet: a clip, and the line of text above it (none if empty)."""

    label: str
    clip: Clip


def contact_sheet(rows: Sequence[SheetRow], *, columns: int = 8, cell_height: int = 128) -> Image:
    """Lay out clips as rows of frames, spread evenly over each clip, the first and the last included.

    Args:
        rows: Rows, at least one; those whose clips are shorter than `columns` have fewer frames.
        columns: Frames in a row, at most.
        cell_height: Pixels of a frame from top to bottom. Small frames are enlarged without smoothing, by whole factors
            as far as they go, and large ones are scaled down; proportions are kept.

    Raises:
        InputError: There is no row, or a number is out of range.
    """
    if not rows:
        raise InputError("expected at least one row for a contact sheet, got none")
    if columns < 1 or cell_height < 8:
        raise InputError(f"expected columns >= 1 and cell_height >= 8, got {columns} and {cell_height}")
    strips = [_strip(row.clip, columns, cell_height) for row in rows]
    tops, height = [], _GAP
    for row, strip in zip(rows, strips, strict=True):
        height += _TEXT_HEIGHT if row.label else 0
        tops.append(height)
        height += strip.shape[0] + _GAP
    sheet = np.empty((height, max(strip.shape[1] for strip in strips) + 2 * _GAP, 3), np.uint8)
    sheet[:] = _PAPER
    for top, strip in zip(tops, strips, strict=True):
        sheet[top : top + strip.shape[0], _GAP : _GAP + strip.shape[1]] = strip
    return _write_labels(sheet, [row.label for row in rows], tops)


def put_side_by_side(clips: Sequence[Clip], *, min_height: int = 256) -> Clip:
    """Show clips beside each other, from left to right, each in the time of the last.

    Args:
        clips: Clips, at least one. Of each, frames are taken evenly over its whole length, as many as the last one has.
        min_height: Pixels from top to bottom. The clips have the height of the last one, or if that is smaller, the
            largest multiple of it up to this one.

    Raises:
        InputError: There is no clip.
    """
    if not clips:
        raise InputError("expected at least one clip to show, got none")
    last = clips[-1]
    height = last.height * max(1, min_height // last.height)
    columns = []
    for clip in clips:
        picks = pick_frames(clip.num_frames, last.num_frames)
        columns.append(np.stack([_scale(clip.frames[pick], height) for pick in picks]))
    return Clip(np.concatenate(columns, axis=2), last.fps)


def _strip(clip: Clip, columns: int, cell_height: int) -> np.ndarray:
    picks = pick_frames(clip.num_frames, min(columns, clip.num_frames))
    cells = [_cell(clip.frames[pick], cell_height) for pick in picks]
    gap = np.full((cells[0].shape[0], _GAP, 3), _PAPER, np.uint8)
    return np.concatenate([part for cell in cells for part in (cell, gap)][:-1], axis=1)


def _cell(frame: np.ndarray, cell_height: int) -> np.ndarray:
    factor = cell_height // frame.shape[0]
    return _scale(frame, factor * frame.shape[0] or cell_height)


def _scale(frame: np.ndarray, height: int) -> np.ndarray:
    factor, rest = divmod(height, frame.shape[0])
    if rest == 0:
        return frame.repeat(factor, axis=0).repeat(factor, axis=1)
    return resize_image(frame, height, max(1, round(frame.shape[1] * height / frame.shape[0])), "stretch")


def _write_labels(sheet: np.ndarray, labels: list[str], tops: list[int]) -> np.ndarray:
    canvas = PIL.Image.fromarray(sheet)
    draw = PIL.ImageDraw.Draw(canvas)
    font = PIL.ImageFont.load_default(_FONT_SIZE)
    for label, top in zip(labels, tops, strict=True):
        draw.text((_GAP, top - _TEXT_HEIGHT + 2), _shortened(label, font, canvas.width - 2 * _GAP), _INK, font)
    return np.array(canvas)


def _shortened(text: str, font: PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..." if text else ""
