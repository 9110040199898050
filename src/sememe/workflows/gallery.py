"""The picture of all conditions: one strip of frames each, by family."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from sememe.events import ProgressHandler, StepCounter, ignore_progress
from sememe.video import Image, pick_frames
from sememe.world import can_show, conditions, random_scene, render
from sememe.world.catalogue import FAMILIES, parts_of

_PAPER, _INK, _FAINT, _ACCENT = (252, 251, 247), (35, 35, 40), (120, 118, 112), (196, 74, 38)
_GAP, _LABEL, _HEADING, _MARGIN = 14, 19, 52, 22
_FIRST_SCENE = 31  # strips show scenes from this seed on
_NUM_SHOWN, _COLUMNS = 5, 4  # frames of a strip, and strips side by side


def draw_gallery(*, size: int = 76, on_progress: ProgressHandler = ignore_progress) -> Image:
    """Draw the gallery, with a strip for every condition, and for the novel pairs.

    Args:
        size: Pixels of a frame's side.
        on_progress: Called after every strip.

    Returns:
        uint8 array (height, width, 3).
    """
    sections = {family: conditions(family=family) for family in FAMILIES}
    sections["novel: two at once"] = conditions(split="novel")
    counter = StepCounter("gallery", sum(map(len, sections.values())), on_progress)
    strip_width = _NUM_SHOWN * size + (_NUM_SHOWN - 1) * 2
    width = 2 * _MARGIN + _COLUMNS * strip_width + (_COLUMNS - 1) * _GAP
    row_height = _LABEL + size + _GAP
    heights = [_HEADING + -(-len(names) // _COLUMNS) * row_height for names in sections.values()]
    sheet = PIL.Image.new("RGB", (width, 2 * _MARGIN + sum(heights)), _PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    heading, label, small = (PIL.ImageFont.load_default(points) for points in (26, 13, 12))
    top, scene = _MARGIN, _FIRST_SCENE
    for (title, names), height in zip(sections.items(), heights, strict=True):
        draw.text((_MARGIN, top), title, _INK, heading)
        for index, name in enumerate(names):
            row, column = divmod(index, _COLUMNS)
            x, y = _MARGIN + column * (strip_width + _GAP), top + _HEADING + row * row_height
            draw.text((x, y), name, _INK, label)
            while not can_show(random_scene(scene), name):
                scene += 1
            if parts_of(name)[0].split == "unseen":
                draw.text((x + strip_width - small.getlength("unseen"), y + 1), "unseen", _ACCENT, small)
            sheet.paste(PIL.Image.fromarray(_strip(name, scene, size)), (x, y + _LABEL))
            scene += 1
            counter.advance()
        top += height
        draw.line([(_MARGIN, top - 6), (width - _MARGIN, top - 6)], _FAINT, 1)
    return np.array(sheet)


def _strip(name: str, scene: int, size: int) -> np.ndarray:
    frames = render(random_scene(scene), name, size=size).clip.frames
    gap = np.full((size, 2, 3), _PAPER, np.uint8)
    cells = [part for pick in pick_frames(len(frames), _NUM_SHOWN) for part in (frames[pick], gap)]
    return np.concatenate(cells[:-1], axis=1)
