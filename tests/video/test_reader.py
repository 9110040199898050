import gc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sememe.errors import InputError, VideoError
from sememe.video import Clip, VideoLimits, read_clip
from sememe.video.source import survey_video
from video_files import Recipe, corner_names, counting_frames, encode, frame_numbers, patch_display_matrix, quadrants


def still(picture: np.ndarray, num_frames: int = 4) -> np.ndarray:
    return np.broadcast_to(picture, (num_frames, *picture.shape)).copy()


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("a.mp4", Recipe()),
        ("a.mov", Recipe(codec="prores_ks", pixel_format="yuv422p10le")),
        ("a.mp4", Recipe(codec="libx265", options={"x265-params": "log-level=none:pools=1"})),
        ("a.webm", Recipe(codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime"})),
        ("a.webm", Recipe(codec="libvpx", options={"cpu-used": "8", "deadline": "realtime"})),
        ("a.webm", Recipe(codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"})),
        ("a.avi", Recipe(codec="mpeg4")),
        ("a.avi", Recipe(codec="mjpeg", pixel_format="yuvj420p")),
        ("a.mkv", Recipe(codec="ffv1", pixel_format="bgr0")),
        ("a.mkv", Recipe(codec="libx264", pixel_format="yuv444p")),
        ("a.gif", Recipe(codec="gif", pixel_format="rgb8")),
    ],
    ids=lambda value: value.codec if isinstance(value, Recipe) else value,
)
def test_codecs_and_containers(tmp_path: Path, name: str, recipe: Recipe) -> None:
    path = encode(tmp_path / name, still(quadrants(64, 96), 6), recipe)
    clip = read_clip(path)
    assert clip.size == (64, 96)
    assert clip.num_frames == 6
    assert clip.fps == pytest.approx(8, rel=0.05)
    assert {corner_names(frame) for frame in clip.frames} == {"rgbw"}
    middle = clip.frames[3, 16, 24].astype(int)
    assert np.abs(middle - (255, 0, 0)).max() <= 12


def test_all_frames_in_order_with_b_frames(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", counting_frames(40), Recipe(rate=25, options={"bf": "3"}))
    clip = read_clip(path)
    assert frame_numbers(clip) == list(range(40))
    assert clip.fps == 25


@pytest.mark.parametrize("keyframe_interval", ["1", "7", "250"])
@pytest.mark.parametrize("open_groups", ["0", "1"])
def test_even_sampling_skips_without_losing_frames(tmp_path: Path, keyframe_interval: str, open_groups: str) -> None:
    options = {"g": keyframe_interval, "bf": "3", "x264-params": f"open-gop={open_groups}:scenecut=0"}
    path = encode(tmp_path / "a.mp4", counting_frames(61), Recipe(rate=30, options=options))
    clip = read_clip(path, num_frames=13)
    assert frame_numbers(clip) == list(range(0, 61, 5))
    assert clip.fps == pytest.approx(30 / 5)
    assert frame_numbers(read_clip(path, num_frames=2)) == [0, 60]
    assert frame_numbers(read_clip(path, num_frames=1)) == [0]


def test_first_and_rate_sampling(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", counting_frames(60), Recipe(rate=30))
    assert frame_numbers(read_clip(path, num_frames=5, sampling="first")) == [0, 1, 2, 3, 4]
    assert read_clip(path, num_frames=5, sampling="first").fps == 30
    by_rate = read_clip(path, sampling="fps", fps=10)
    assert frame_numbers(by_rate) == list(range(0, 60, 3))
    assert by_rate.fps == 10
    assert frame_numbers(read_clip(path, sampling="fps", fps=10, num_frames=4)) == [0, 3, 6, 9]


def test_a_section_is_read_as_a_file_of_its_own(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", counting_frames(20), Recipe(rate=10, options={"g": "4"}))
    whole = read_clip(path)
    section = read_clip(path, start=0.5, end=1.2)
    assert section == Clip(whole.frames[5:12], whole.fps)
    assert np.array_equal(read_clip(path, num_frames=3, start=0.5, end=1.2).frames, whole.frames[[5, 8, 11]])
    assert np.array_equal(read_clip(path, num_frames=2, sampling="first", start=1.8).frames, whole.frames[18:])
    with pytest.raises(VideoError, match=r"frames from 7 s on, but .* lasts 1\.9 s"):
        read_clip(path, start=7.0)
    with pytest.raises(InputError, match="and rising, got 2"):
        read_clip(path, start=2.0, end=1.0)


def test_a_section_has_its_own_rate_where_rates_vary(tmp_path: Path) -> None:
    times = [number / 50 for number in range(10)] + [0.2 + number / 10 for number in range(20)]
    path = encode(tmp_path / "a.mkv", counting_frames(30), Recipe(times=times))
    assert read_clip(path).fps == pytest.approx(29 / 2.1)
    begun = read_clip(path, end=0.2)
    assert begun.num_frames == 10
    assert begun.fps == pytest.approx(50)
    assert read_clip(path, start=0.2).fps == pytest.approx(10)
    # Of time stamps in whole milliseconds, two frames at 30 a second have an error of a fiftieth.
    even = encode(tmp_path / "b.mkv", counting_frames(12), Recipe(rate=30))
    assert {read_clip(even, start=number / 30 - 0.01, end=number / 30 + 0.05).fps for number in range(1, 10)} == {30.0}


def test_only_the_section_of_a_long_video_is_held_to_the_limits(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", counting_frames(60), Recipe(rate=10, options={"g": "5", "bf": "0"}))
    limits = VideoLimits(max_duration=1.5, max_frames=20, max_total_pixels=20 * 32 * 48)
    with pytest.raises(VideoError, match=r"at most 20 frames.*a section of it"):
        read_clip(path, limits=limits)
    assert frame_numbers(read_clip(path, start=3.1, end=3.5, limits=limits)) == [31, 32, 33, 34]
    assert frame_numbers(read_clip(path, num_frames=2, start=5.0, limits=limits)) == [50, 59]
    assert len(survey_video(path, limits, num_frames=7).times) == 7
    assert survey_video(path, limits, start=5.8, num_frames=7).times.tolist() == pytest.approx([5.8, 5.9])
    with pytest.raises(VideoError, match=r"at most 1\.5 s of video, but .* lasts 3\.0 s"):
        read_clip(path, start=3.0, limits=limits)
    # Its one group of frames has to be decoded up to the section.
    path = encode(tmp_path / "b.mp4", counting_frames(60), Recipe(rate=10, options={"g": "60"}))
    with pytest.raises(VideoError, match="at most 20 frames"):
        read_clip(path, start=3.1, end=3.5, limits=limits)


def test_short_videos_repeat_frames(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", counting_frames(3))
    assert frame_numbers(read_clip(path, num_frames=6)) == [0, 0, 0, 1, 1, 2]
    assert frame_numbers(read_clip(path, num_frames=5, sampling="first")) == [0, 1, 2, 2, 2]


def test_decoded_frames_are_let_go(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", counting_frames(60))
    gc.collect()
    gc.disable()
    try:
        read_clip(path)
        held = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
    finally:
        gc.enable()
    assert held <= 1


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (VideoLimits(max_frames=11), "unfolds to more than its header says"),
        (VideoLimits(max_total_pixels=11 * 32 * 48), "unfolds to more than its header says"),
        (VideoLimits(max_pixels=32 * 47), "those of .* are 48x32"),
    ],
)
def test_frames_are_held_to_the_limits_again_as_they_are_decoded(
    limits: VideoLimits, message: str, tmp_path: Path
) -> None:
    path = encode(tmp_path / "a.mp4", counting_frames(12))
    promised = survey_video(path)  # as a header that lies would have passed
    with pytest.raises(VideoError, match=message):
        read_clip(path, limits=limits, survey=promised)


def test_one_frame(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", counting_frames(1))
    assert read_clip(path).num_frames == 1
    assert read_clip(path, num_frames=4).num_frames == 4


def test_varying_rate_is_sampled_by_time(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 0.3, 0.4, 2.4, 2.5, 2.6]
    path = encode(tmp_path / "a.mp4", counting_frames(8), Recipe(times=times, rate=10))
    assert frame_numbers(read_clip(path)) == list(range(8))
    even = read_clip(path, num_frames=14)  # a frame each 0.2 s
    assert frame_numbers(even) == [0, 2, *[4] * 10, 5, 7]
    assert even.fps == pytest.approx(5)
    assert frame_numbers(read_clip(path, sampling="fps", fps=1)) == [0, 4, 4]


@pytest.mark.parametrize("start", [-0.5, 1.5])
def test_clips_that_do_not_start_at_zero(tmp_path: Path, start: float) -> None:
    times = [start + number / 8 for number in range(16)]
    path = encode(
        tmp_path / "a.mkv", counting_frames(16), Recipe(times=times, muxing={"avoid_negative_ts": "disabled"})
    )
    assert frame_numbers(read_clip(path)) == list(range(16))
    assert frame_numbers(read_clip(path, num_frames=4)) == [0, 5, 10, 15]


def test_sound_is_ignored(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", counting_frames(16), Recipe(audio=True))
    assert frame_numbers(read_clip(path)) == list(range(16))
    assert frame_numbers(read_clip(path, num_frames=4)) == [0, 5, 10, 15]


@pytest.mark.parametrize(
    ("matrix", "turns", "mirrored"),
    [
        ((1, 0, 0, 1), 0, False),
        ((0, 1, -1, 0), -1, False),  # what a phone held upright writes: turn clockwise
        ((-1, 0, 0, -1), 2, False),
        ((0, -1, 1, 0), 1, False),
        ((-1, 0, 0, 1), 0, True),  # a mirrored selfie
    ],
)
def test_display_matrix(tmp_path: Path, matrix: tuple[int, int, int, int], turns: int, *, mirrored: bool) -> None:
    path = encode(tmp_path / "a.mp4", still(quadrants(32, 64)))
    patch_display_matrix(path, *matrix)
    clip = read_clip(path)
    expected = np.rot90(quadrants(32, 64), turns)
    expected = expected[:, ::-1] if mirrored else expected
    assert clip.size == expected.shape[:2]
    assert corner_names(clip.frames[0]) == corner_names(expected)


def test_rotation_as_written_by_ffmpeg(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", still(quadrants(32, 64)), Recipe(rotation=90))  # anticlockwise
    assert corner_names(read_clip(path).frames[0]) == corner_names(np.rot90(quadrants(32, 64)))


def test_pixel_aspect(tmp_path: Path) -> None:
    wide = encode(tmp_path / "wide.mp4", still(quadrants(64, 64)), Recipe(sample_aspect=Fraction(2, 1)))
    assert read_clip(wide).size == (64, 128)
    tall = encode(tmp_path / "tall.mp4", still(quadrants(64, 64)), Recipe(sample_aspect=Fraction(1, 2)))
    assert read_clip(tall).size == (128, 64)
    turned = patch_display_matrix(wide, 0, 1, -1, 0)
    assert read_clip(turned).size == (128, 64)
    assert corner_names(read_clip(turned).frames[0]) == corner_names(np.rot90(quadrants(), -1))
    assert read_clip(turned, size=(20, 30)).size == (20, 30)


def test_odd_sizes(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", still(quadrants(33, 47)), Recipe(codec="ffv1", pixel_format="bgr0"))
    clip = read_clip(path)
    assert clip == Clip(still(quadrants(33, 47)), 8)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("a.mov", Recipe(codec="png", pixel_format="rgba")),
        ("a.webm", Recipe(codec="libvpx-vp9", pixel_format="yuva420p", options={"cpu-used": "8"})),
        ("a.webm", Recipe(codec="libvpx", pixel_format="yuva420p", options={"cpu-used": "8", "auto-alt-ref": "0"})),
    ],
    ids=lambda value: value.codec if isinstance(value, Recipe) else value,
)
def test_transparency_becomes_white(tmp_path: Path, name: str, recipe: Recipe) -> None:
    frames = np.zeros((3, 32, 32, 4), np.uint8)
    frames[:, :16] = (0, 0, 255, 255)
    frames[:, 16:] = (0, 0, 255, 0)
    clip = read_clip(encode(tmp_path / name, frames, recipe))
    assert clip.num_frames == 3
    assert np.abs(clip.frames[1, 4, 4].astype(int) - (0, 0, 255)).max() <= 4
    assert clip.frames[1, 28, 4].tolist() == [255, 255, 255]


def test_one_field_of_interlaced_frames_is_read(tmp_path: Path) -> None:
    frames = np.zeros((4, 64, 48, 3), np.uint8)
    frames[:, 0::2], frames[:, 1::2] = 200, 40
    combed = encode(tmp_path / "a.mp4", frames, Recipe(options={"x264-params": "tff=1", "crf": "5"}))
    clip = read_clip(combed)
    assert clip.size == (64, 48)
    assert np.abs(clip.frames.astype(int) - 200).max() <= 3
    assert read_clip(combed, size=(32, 48)).size == (32, 48)


def test_size_and_max_size(tmp_path: Path) -> None:
    frames = still(np.zeros((48, 96, 3), np.uint8))
    frames[:, :, 24:72] = 255
    path = encode(tmp_path / "a.mp4", frames)
    squared = read_clip(path, size=(24, 24))
    assert squared.size == (24, 24)
    assert squared.frames[:, 4:-4, 4:-4].min() > 245  # the dark sides are cropped
    assert read_clip(path, max_size=48).size == (24, 48)
    assert read_clip(path, max_size=500).size == (48, 96)


@pytest.mark.parametrize(("matrix", "lines"), [("bt709", 480), ("smpte170m", 480), (None, 720), (None, 480)])
def test_colour_matrix_is_honoured(tmp_path: Path, matrix: str | None, lines: int) -> None:
    params = f"colormatrix={matrix}" if matrix else "colormatrix=undef"
    colour = np.array([200, 40, 90])
    large = lines >= 720
    red, blue = (0.2126, 0.0722) if matrix == "bt709" or (matrix is None and large) else (0.299, 0.114)
    luma = red * colour[0] + (1 - red - blue) * colour[1] + blue * colour[2]
    planes = [
        16 + 219 / 255 * luma,
        128 + 224 / 255 * (colour[2] - luma) / (2 * (1 - blue)),
        128 + 224 / 255 * (colour[0] - luma) / (2 * (1 - red)),
    ]
    path = tmp_path / "a.mp4"
    encode_planes(path, [round(plane) for plane in planes], lines, {"x264-params": params, "qp": "1"})
    assert np.abs(read_clip(path).frames[0, 30, 30].astype(int) - colour).max() <= 3


def encode_planes(path: Path, values: list[int], lines: int, options: dict[str, str]) -> None:
    """One frame of plain luma and chroma values, so that no conversion but the reader's takes part."""
    import av
    from av.video.stream import VideoStream

    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=8, options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = lines, 64, "yuv420p"
        planes = np.concatenate(
            [np.full(lines * 64, values[0]), np.full(lines * 16, values[1]), np.full(lines * 16, values[2])]
        )
        output.mux(stream.encode(av.VideoFrame.from_ndarray(planes.astype(np.uint8).reshape(-1, 64), format="yuv420p")))
        output.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "num_frames"),
        ({"sampling": "first"}, "needs num_frames"),
        ({"sampling": "fps"}, "needs fps"),
        ({"fps": 8.0}, "no effect"),
        ({"size": (8, 8), "max_size": 8}, "leave one out"),
        ({"size": (0, 8)}, "at least 1 pixel"),
        ({"max_size": 0}, "max_size"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_clip(tmp_path / "never looked at.mp4", **arguments)


@pytest.mark.parametrize(
    ("name", "codec", "message"),
    [
        ("a.ts", "libx264", "an MPEG transport stream"),
        ("a.m2ts", "libx264", "an MPEG transport stream"),
        ("a.mpg", "mpeg2video", "an MPEG program stream"),
        ("a.flv", "flv1", "a Flash video"),
        ("a.ogv", "libvpx", "an Ogg file"),
        ("a.apng", "apng", "a PNG picture or animation"),
    ],
)
def test_containers_that_are_not_read_are_named(name: str, codec: str, message: str, tmp_path: Path) -> None:
    pixels = {"apng": "rgb24"}.get(codec, "yuv420p")
    path = encode(tmp_path / name, counting_frames(4), Recipe(codec=codec, pixel_format=pixels, rate=25))
    with pytest.raises(VideoError, match=rf"{message}; convert it, .*ffmpeg -i {name}"):
        read_clip(path)
