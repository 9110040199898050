"""Clips that several tests of this folder use."""

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from sememe.video import Clip


@pytest.fixture
def smooth_clip() -> "Clip":
    """Twelve frames of 48x64 with soft colours that move."""
    from sememe.video import Clip  # not above: this file may be loaded before the shape checks are installed

    rows, columns = np.mgrid[0:48, 0:64]
    frames = [
        np.stack(
            [
                127 + 100 * np.sin(columns / 9 + number / 3),
                127 + 100 * np.cos(rows / 8 - number / 4),
                127 + 90 * np.sin((rows + columns) / 15),
            ],
            axis=-1,
        )
        for number in range(12)
    ]
    return Clip(np.round(frames).astype(np.uint8), 12.0)
