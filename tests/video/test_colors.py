"""HDR clips against the anchors of the standards, written as exact RGB so that no codec or matrix has a share in it."""

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from sememe.video import read_clip

PQ, HLG, BT709, BT2020 = 16, 18, 1, 9
# BT.2087: linear BT.709 to linear BT.2020.
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def write(path: Path, signal: np.ndarray, transfer: int) -> Path:
    """Writes two frames of one colour, given as signal in 0..1."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=8)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "gbrp10le"
        stream.codec_context.color_trc = transfer
        stream.codec_context.color_primaries = BT2020
        for _ in range(2):
            array = np.broadcast_to(np.round(1023 * signal).astype(np.uint16), (32, 48, 3)).copy()
            frame = av.VideoFrame.from_ndarray(array, format="gbrp10le")
            frame.color_trc = transfer
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def show(path: Path, signal: np.ndarray, transfer: int) -> list[int]:
    frames = read_clip(write(path, signal, transfer)).frames
    assert (frames == frames[0, 0, 0]).all()
    return [int(level) for level in frames[0, 0, 0]]


def pq(nits: np.ndarray) -> np.ndarray:
    power = (nits / 10_000) ** (1305 / 8192)
    return np.asarray(((107 + 2413 * power) / (128 + 2392 * power)) ** (2523 / 32))


@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize(
    ("signals", "levels"),
    [
        ({PQ: 0.0, HLG: 0.0}, (0, 0)),
        ({PQ: 0.38, HLG: 0.38}, (96, 106)),  # BT.2408: a grey card, at 26 nits
        ({PQ: 0.58, HLG: 0.75}, (243, 250)),  # BT.2408: white paper, at 203 nits
        ({PQ: 1.0, HLG: 1.0}, (253, 255)),
    ],
)
def test_greys_of_the_standard(
    transfer: int, signals: dict[int, float], levels: tuple[int, int], tmp_path: Path
) -> None:
    shown = show(tmp_path / "a.mkv", np.full(3, signals[transfer]), transfer)
    assert max(shown) - min(shown) <= 1  # the standard's matrix is rounded
    assert levels[0] <= shown[0] <= levels[1]


def test_colours_below_the_highlights_are_those_of_srgb(tmp_path: Path) -> None:
    colour = np.array([204, 51, 51])
    linear = ((colour / 255 + 0.055) / 1.055) ** 2.4
    shown = show(tmp_path / "a.mkv", pq(203 * TO_BT2020 @ linear), PQ)
    assert np.abs(np.array(shown) - colour).max() <= 2


def test_highlights_keep_their_colour(tmp_path: Path) -> None:
    red, green, blue = show(tmp_path / "a.mkv", pq(4 * 203 * TO_BT2020 @ np.array([1.0, 0.25, 0.25])), PQ)
    assert red >= 250
    assert green == blue
    assert abs(green - 137) <= 3  # a quarter of the light


def test_clips_of_standard_range_are_left_alone(tmp_path: Path) -> None:
    assert show(tmp_path / "a.mkv", np.array([200, 100, 50]) / 255, BT709) == [200, 100, 50]
