import numpy as np
import pytest

from sememe.errors import InputError, VideoError
from sememe.video import Clip


def test_properties() -> None:
    clip = Clip(np.zeros((6, 4, 5, 3), np.uint8), fps=12)
    assert (clip.num_frames, clip.height, clip.width, clip.size) == (6, 4, 5, (4, 5))
    assert clip.duration == 0.5
    assert isinstance(clip.fps, float)


def test_equality_is_by_content() -> None:
    frames = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    assert Clip(frames, 8) == Clip(frames.copy(), 8.0)
    assert Clip(frames, 8) != Clip(frames, 9)
    assert Clip(frames, 8) != Clip(255 - frames, 8)
    assert Clip(frames, 8) != Clip(frames[:1], 8)
    assert Clip(frames, 8) != "clip"


def test_frames_are_made_contiguous() -> None:
    frames = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)[:, ::-1]
    assert Clip(frames, 8).frames.flags.c_contiguous


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4, 3), np.uint8), "shape"),
        (np.zeros((2, 4, 4, 4), np.uint8), "shape"),
        (np.zeros((0, 4, 4, 3), np.uint8), "at least one frame"),
        (np.zeros((1, 0, 4, 3), np.uint8), "at least one"),
    ],
)
def test_wrong_frames_are_refused(frames: np.ndarray, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        Clip(frames, 8)


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_wrong_rates_are_refused(fps: float) -> None:
    with pytest.raises(InputError, match="fps"):
        Clip(np.zeros((1, 2, 2, 3), np.uint8), fps)


def test_from_image() -> None:
    image = np.full((3, 4, 3), 7, np.uint8)
    clip = Clip.from_image(image, fps=5)
    assert clip == Clip(image[None], 5)
