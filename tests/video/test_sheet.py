import numpy as np
import pytest

from sememe.errors import InputError
from sememe.video import Clip, SheetRow, contact_sheet, put_side_by_side
from video_files import counting_frames


def test_small_frames_are_enlarged_and_labelled() -> None:
    clip = Clip(counting_frames(17, 32, 32), 8)
    bare = contact_sheet([SheetRow("", clip)], columns=5, cell_height=64)
    labelled = contact_sheet([SheetRow("reference", clip)], columns=5, cell_height=64)
    assert bare.shape == (64 + 8, 5 * 64 + 4 * 4 + 8, 3)
    assert labelled.shape[0] > bare.shape[0]
    label = labelled[: labelled.shape[0] - 68]
    assert label.min() < 100 < label.max()  # ink on paper


def test_first_and_last_frame_are_shown() -> None:
    sheet = contact_sheet([SheetRow("", Clip(counting_frames(17, 32, 32), 8))], columns=3, cell_height=32)
    assert [int(sheet[20, column, 0]) for column in (20, 56, 92)] == [0, 4 * 8, 4 * 16]


def test_rows_of_unequal_clips_stand_below_each_other() -> None:
    rows = [
        SheetRow("a", Clip(counting_frames(2, 20, 30), 8)),
        SheetRow("b" * 500, Clip(counting_frames(9, 300, 40), 8)),
    ]
    sheet = contact_sheet(rows, columns=4, cell_height=100)
    assert sheet.shape[0] == 4 + 20 + 100 + 4 + 20 + 100 + 4
    assert sheet.dtype == np.uint8


def test_clips_play_side_by_side() -> None:
    longer, result = Clip(counting_frames(17, 48, 20), 30), Clip(counting_frames(9, 32, 32), 8)
    shown = put_side_by_side([longer, result], min_height=70)
    assert (shown.size, shown.fps, shown.num_frames) == ((64, 27 + 64), 8, 9)
    assert np.array_equal(shown.frames[:, 0, 0, 0], 4 * np.arange(0, 17, 2))
    assert np.array_equal(shown.frames[:, :, 27:], result.frames.repeat(2, axis=1).repeat(2, axis=2))
    assert put_side_by_side([result], min_height=10) == result


def test_nothing_to_show_is_refused() -> None:
    with pytest.raises(InputError, match="at least one row"):
        contact_sheet([])
    with pytest.raises(InputError, match="columns"):
        contact_sheet([SheetRow("", Clip(counting_frames(2), 8))], columns=0)
