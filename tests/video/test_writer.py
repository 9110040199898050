import json
import os
import struct
from pathlib import Path

import av
import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sememe.errors import InputError, OutputError
from sememe.video import Clip, read_clip, write_clip, writer
from video_files import counting_frames


@settings(max_examples=15)
@given(
    num_frames=st.integers(1, 5),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    fps=st.sampled_from([8, 24, 30000 / 1001, 60.0, 12.5]),
    seed=st.integers(0, 99),
)
def test_lossless_round_trip(
    tmp_path_factory: pytest.TempPathFactory, num_frames: int, height: int, width: int, fps: float, seed: int
) -> None:
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("round") / "a.mkv"
    write_clip(Clip(frames, fps), path, lossless=True)
    clip = read_clip(path)
    assert np.array_equal(clip.frames, frames)
    assert clip.fps == pytest.approx(fps, rel=1e-3)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.webm"])
def test_colours_survive(tmp_path: Path, smooth_clip: Clip, name: str) -> None:
    write_clip(smooth_clip, tmp_path / name, quality=4)
    clip = read_clip(tmp_path / name)
    assert (clip.size, clip.num_frames, clip.fps) == (smooth_clip.size, smooth_clip.num_frames, smooth_clip.fps)
    difference = clip.frames.astype(int) - smooth_clip.frames
    assert np.abs(difference).mean() < 2
    assert np.abs(difference.mean(axis=(0, 1, 2))).max() < 0.6  # no tint


def test_the_default_quality_is_close(tmp_path: Path, smooth_clip: Clip) -> None:
    write_clip(smooth_clip, tmp_path / "a.mp4")
    difference = read_clip(tmp_path / "a.mp4").frames.astype(int) - smooth_clip.frames
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 40, 90)])
def test_flat_colours_are_exact(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    write_clip(Clip(np.full((2, 32, 32, 3), colour, np.uint8), 8), tmp_path / "a.mp4", quality=1)
    assert np.abs(read_clip(tmp_path / "a.mp4").frames[1, 16, 16].astype(int) - colour).max() <= 2


def test_colours_are_tagged_as_bt709_of_limited_range(tmp_path: Path, smooth_clip: Clip) -> None:
    write_clip(smooth_clip, tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        # Red in BT.709: luma 63, and 81 in BT.601.
    write_clip(Clip(np.full((1, 32, 32, 3), (255, 0, 0), np.uint8), 8), tmp_path / "red.mp4", quality=1)
    with av.open(str(tmp_path / "red.mp4")) as container:
        luma = next(container.decode(video=0)).to_ndarray()[16, 16]
    assert abs(int(luma) - 63) <= 1


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.gif"])
def test_same_clip_same_bytes(tmp_path: Path, smooth_clip: Clip, name: str) -> None:
    metadata = None if name == "a.gif" else {"seed": "7"}
    contents = set()
    for number in range(8):  # what is not reproducible may come out the same once
        write_clip(smooth_clip, tmp_path / f"{number}-{name}", metadata=metadata)
        contents.add((tmp_path / f"{number}-{name}").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (17, 16), (2, 3)])
def test_odd_sides_are_padded_by_repetition(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = np.zeros((3, *size, 3), np.uint8)
    frames[:, -1:, :] = 200
    frames[:, :, -1:] = 200
    write_clip(Clip(frames, 8), tmp_path / "a.mp4", quality=1)
    clip = read_clip(tmp_path / "a.mp4")
    assert clip.size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    if size == (33, 47):
        assert clip.frames[0, -1].min() > 150
        assert clip.frames[0, :, -1].min() > 150


def test_metadata_is_one_comment(tmp_path: Path, smooth_clip: Clip) -> None:
    metadata = {"seed": "7", "prompt": 'café "melt"\nline'}
    for name in ("a.mp4", "a.mkv"):
        write_clip(smooth_clip, tmp_path / name, metadata=metadata)
        with av.open(str(tmp_path / name)) as container:
            found = {key.lower(): value for key, value in container.metadata.items()}
        assert json.loads(found["comment"]) == metadata


def test_the_index_stands_before_the_pictures(tmp_path: Path, smooth_clip: Clip) -> None:
    write_clip(smooth_clip, tmp_path / "a.mp4")
    data, place, boxes = (tmp_path / "a.mp4").read_bytes(), 0, []
    while place < len(data):
        length, name = struct.unpack(">I4s", data[place : place + 8])
        boxes.append(name)
        place += length
    assert boxes.index(b"moov") < boxes.index(b"mdat")


def test_a_gif_lasts_as_long_as_the_clip(tmp_path: Path) -> None:
    write_clip(Clip(counting_frames(16), 8), tmp_path / "a.gif")  # a frame each 12.5 hundredths of a second
    with PIL.Image.open(tmp_path / "a.gif") as image:
        durations = [frame.info["duration"] for frame in PIL.ImageSequence.Iterator(image)]
    assert set(durations) == {120, 130}
    assert sum(durations) == 2000
    assert read_clip(tmp_path / "a.gif").fps == pytest.approx(8, rel=0.01)


def test_gif(tmp_path: Path) -> None:
    write_clip(Clip(counting_frames(5), 10), tmp_path / "a.gif")
    clip = read_clip(tmp_path / "a.gif")
    assert clip == Clip(counting_frames(5), 10)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, MemoryError])
def test_nothing_is_left_when_interrupted(
    tmp_path: Path, smooth_clip: Clip, monkeypatch: pytest.MonkeyPatch, exception: type[BaseException]
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"older")
    convert, calls = writer._convert, []

    def interrupted(*arguments: object) -> av.VideoFrame:
        calls.append(arguments)
        if len(calls) == 5:
            raise exception
        return convert(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "_convert", interrupted)
    with pytest.raises(exception):
        write_clip(smooth_clip, tmp_path / "a.mp4")
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"older"


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """Writing through FFmpeg fails in the middle, as on a full disk."""
    resource = pytest.importorskip("resource", reason="limits on file size are a matter of Unix")
    frames = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), dtype=np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot write"):
            write_clip(Clip(frames, 8), tmp_path / "a.mkv", lossless=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path, smooth_clip: Clip) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OutputError, match="does not exist"):
        write_clip(smooth_clip, tmp_path / "nowhere" / "a.mp4")
    with pytest.raises(OutputError, match="got the folder"):
        write_clip(smooth_clip, tmp_path / "folder.mp4")
    with pytest.raises(OutputError, match="ending in"):
        write_clip(smooth_clip, tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("a.mp4", {"lossless": True}, "name the file .mkv"),
        ("a.mp4", {"codec": "ffv1"}, "name the file .mkv"),
        ("a.mkv", {"codec": "h264", "lossless": True}, "leave one"),
        ("a.mkv", {"quality": 3, "lossless": True}, "no effect"),
        ("a.mp4", {"quality": 52}, "0 .best. to 51"),
        ("a.webm", {"codec": "h264"}, "vp9"),
        ("a.gif", {"metadata": {"seed": "1"}}, "gif"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, smooth_clip: Clip, name: str, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_clip(smooth_clip, tmp_path / name, **settings)
    assert os.listdir(tmp_path) == []
