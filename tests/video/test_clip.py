import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sememe.errors import InputError, VideoError
from sememe.video import Clip, VideoLimits, read_clip, reader
from video_files import Recipe, counting_frames, encode, frame_numbers


def refusal(path: Path, **arguments: object) -> str:
    with pytest.raises(VideoError) as caught:
        read_clip(path, **arguments)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("a frame was asked of the decoder")

    monkeypatch.setattr(reader, "_decode", decode)


def test_no_such_file(tmp_path: Path) -> None:
    assert "no file" in refusal(tmp_path / "a.mp4")


def test_a_folder(tmp_path: Path) -> None:
    assert "folder" in refusal(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    assert "no regular file" in refusal(tmp_path / "a.mp4")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    assert "empty" in refusal(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "content",
    [
        b"This is no video.\n" * 50,
        bytes(np.random.default_rng(3).integers(0, 256, 5000, dtype=np.uint8)),
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
    ],
    ids=["text", "noise", "playlist", "concatenation"],
)
def test_not_a_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert "expected a video" in refusal(path)


def test_only_sound(tmp_path: Path) -> None:
    import av
    from av.audio.stream import AudioStream

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        assert isinstance(stream, AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert "no video stream" in refusal(path)


def test_no_frame_at_all(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", np.zeros((0, 32, 32, 3), np.uint8), Recipe(codec="ffv1", pixel_format="bgr0"))
    assert "is none" in refusal(path)


def test_a_codec_off_the_list(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.avi", counting_frames(3), Recipe(codec="magicyuv", pixel_format="gbrp"))
    assert "codec magicyuv" in refusal(path)


@pytest.mark.parametrize("muxing", [{}, {"movflags": "+faststart"}], ids=["index last", "index first"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_mp4(tmp_path: Path, muxing: dict[str, str], share: float) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), dtype=np.uint8)
    path = encode(tmp_path / "a.mp4", frames, Recipe(muxing=muxing))
    assert read_clip(path).num_frames == 40
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = refusal(path)
    assert "incomplete" in message or "damaged" in message


def test_a_truncated_mkv(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), dtype=np.uint8)
    path = encode(tmp_path / "a.mkv", frames)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "incomplete" in refusal(path)


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("recipe", [Recipe(options={"preset": "ultrafast"}), Recipe(codec="mpeg4")])
def test_frames_that_are_too_large(tmp_path: Path, recipe: Recipe) -> None:
    path = encode(tmp_path / "a.mp4", np.zeros((1, 4096, 8000, 3), np.uint8), recipe)
    assert path.stat().st_size < 500_000
    assert "at most 9.44 megapixels" in refusal(path)


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """VP9 in WebM, of which FFmpeg decodes a frame on opening: here that alone would take 29 MB, with conversion 87."""
    recipe = Recipe(codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime"})
    path = encode(tmp_path / "a.webm", np.zeros((1, 4400, 4400, 3), np.uint8), recipe)
    code = "import resource, sys; from sememe.video import read_clip\n"
    code += "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    code += (
        "try:\n    read_clip(sys.argv[1], num_frames=1, size=(8, 8))\nexcept ValueError as error:\n    print(error)\n"
    )
    code += "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        check=True,
        timeout=600,
        capture_output=True,
        text=True,
    )
    message, grown = done.stdout.splitlines()
    assert "larger" in message
    assert int(grown) < 15


@pytest.mark.usefixtures("no_decoding")
def test_many_flat_frames(tmp_path: Path) -> None:
    """A few kilobytes that unfold to gigabytes are refused by what the packets tell."""
    path = encode(tmp_path / "a.mp4", np.zeros((120, 512, 512, 3), np.uint8), Recipe(options={"preset": "ultrafast"}))
    assert path.stat().st_size < 60_000
    assert "num_frames" in refusal(path, limits=VideoLimits(max_kept_bytes=50_000_000))
    assert "GB of RGB" in refusal(path, num_frames=2, limits=VideoLimits(max_total_pixels=20_000_000))
    assert "at most 100 frames" in refusal(path, num_frames=2, limits=VideoLimits(max_frames=100))
    assert "15.0 s" in refusal(path, num_frames=2, limits=VideoLimits(max_duration=10))
    assert "num_frames" in refusal(path, num_frames=10**9)


def test_a_long_video_is_read_into_little_memory(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", counting_frames(60, 512, 512), Recipe(options={"preset": "ultrafast"}))
    clip = read_clip(path, num_frames=4, size=(16, 16), limits=VideoLimits(max_kept_bytes=4 * 16 * 16 * 3))
    assert clip.size == (16, 16)
    assert frame_numbers(clip) == [0, 19, 39, 59]


def test_the_defaults_let_a_minute_of_4k_pass() -> None:
    limits = VideoLimits()
    assert limits.max_pixels >= 4096 * 2160
    assert limits.max_frames >= 60 * 60
    assert limits.max_total_pixels >= 3840 * 2160 * 60 * 60
    assert limits.max_total_pixels * 3 < 200e9


def test_damaged_payload_never_crashes(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", counting_frames(12), Recipe(options={"preset": "ultrafast"}))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 12)):
            data[place] = rng.integers(0, 256)
        path.write_bytes(bytes(data))
        with contextlib.suppress(VideoError):
            assert read_clip(path, num_frames=3, size=(8, 8)).frames.shape == (3, 8, 8, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4_000_000


@pytest.mark.parametrize("limit", ["max_pixels", "max_frames", "max_duration", "max_kept_bytes"])
def test_limits_must_be_positive(limit: str) -> None:
    with pytest.raises(InputError, match=limit):
        VideoLimits(**{limit: 0})


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
