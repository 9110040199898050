"""A video file that was opened and surveyed, and from which no frame has been decoded yet.

What a file says of itself is checked here against the limits: container, codec, size, and then the packets themselves,
which are counted without being decoded. FFmpeg decodes a first frame on opening where the container does not tell
enough (VP9 in WebM, say); the limits are handed to it for that as well.
"""

import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream
from jaxtyping import Int

from sememe.errors import InputError, VideoError
from sememe.video.clip import VideoLimits
from sememe.video.resizing import Times, mean_rate

FORMATS = ("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "gif")
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "h263", "mjpeg", "prores", "ffv1", "png", "gif")

_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_DECODERS = (*CODECS, "libdav1d", *_WITH_ALPHA.values())
_EXPECTED = "expected a video (mp4, mov, webm, mkv, avi or gif)"
_OTHER_CONTAINERS = {
    "an MPEG program stream": b"\x00\x00\x01\xba",
    "a Flash video": b"FLV",
    "a Windows Media file": bytes.fromhex("3026b2758e66cf11"),
    "an Ogg file": b"OggS",
    "a PNG picture or animation": b"\x89PNG",
}
_NO_TIME = -(2**63)  # FFmpeg's own sign for a time stamp that is not there
_MOST_SKIPPED = 100  # times the frames that a video may have, a longer one may have from which a section is read
Integers = Int[np.ndarray, " _"]
_ALIGNMENT = 64  # decoders round sides up to whole blocks before they compare with max_pixels


@dataclass(frozen=True, eq=False)
class Survey:
    """What the packets of a video stream tell without being decoded. Arrays are in the order of presentation.

    Attributes:
        height: Height of the stored frame in pixels.
        width: Width of the stored frame in pixels.
        times: Seconds at which each frame is shown, ascending.
        groups: For each frame, the number of the group of packets (a keyframe and what depends on it) that it is stored
            in.
        group_starts: For each group, the seconds at which its keyframe is shown.
        fps: Frames a second, the mean.
        file_duration: Seconds that the whole file lasts, also where a section of it was surveyed.
        tick: Seconds, the unit of the file's time stamps.
        timed: Whether `times` come from the file; otherwise they are counted up from 0 at the nominal rate.
    """

    height: int
    width: int
    times: Times
    groups: np.ndarray
    group_starts: np.ndarray
    fps: float
    file_duration: float
    tick: float
    timed: bool


@dataclass(frozen=True, eq=False)
class Source:
    """An open container, its video stream and what is known of it.

    `height` and `width` are those of the stored frame; `pixel_aspect` is the width of a stored pixel over its height.
    """

    path: Path
    container: InputContainer
    stream: VideoStream
    decoder: VideoCodecContext
    height: int
    width: int
    pixel_aspect: float
    survey: Survey


def survey_video(
    path: str | Path,
    limits: VideoLimits | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
    num_frames: int | None = None,
) -> Survey:
    """Check and survey a video file, or a section of one, without decoding it.

    Args:
        path: Path of the file.
        limits: What the section is held to, `VideoLimits()` if None; the rest of the file may be longer.
        start: Seconds from the first frame at which the section begins. None for the first frame.
        end: Seconds from the first frame at which it ends. None for the end.
        num_frames: Most frames of the section, at least 1; None for all.

    Raises:
        VideoError: There is no such file, or it is no video, is damaged, has no frame in the section, or is not within
            the limits.
        InputError: The section does not begin at 0 or later, or ends before it begins.
    """
    path, limits = checked_path(path, _EXPECTED), limits or VideoLimits()
    low, high = start or 0.0, np.inf if end is None else end
    if not 0 <= low < high:
        raise InputError(f"expected a section of a video as start and end, 0 or more and rising, got {low} and {high}")
    with _translated(path), _open(path, limits) as container:
        stream = _video_stream(path, container)
        size, is_whole = _checked_size(path, stream, limits), (start, end, num_frames) == (None, None, None)
        whole = _survey(path, container, stream, size, limits.max_frames * (1 if is_whole else _MOST_SKIPPED))
    return _cut(path, whole, low, high, num_frames, limits)


@contextmanager
def open_source(path: str | Path, limits: VideoLimits, survey: Survey) -> Iterator[Source]:
    """Open a video file that was surveyed. FFmpeg's errors come out of the block as `VideoError`.

    Raises:
        VideoError: There is no such file, or it is no video, is damaged, or is not within the limits.
    """
    path = checked_path(path, _EXPECTED)
    # Opened again rather than rewound: seeking to the start has exceptions in every container.
    with _translated(path), _open(path, limits) as container:
        stream = _video_stream(path, container)
        decoder = _choose_decoder(stream)
        decoder.options = _decoder_options(limits)
        decoder.thread_type = "AUTO"
        yield Source(path, container, stream, decoder, survey.height, survey.width, _pixel_aspect(stream), survey)


def _choose_decoder(stream: VideoStream) -> VideoCodecContext:
    """Return the stream's decoder, or one that knows transparency, which FFmpeg's own of VP8 and VP9 leave out."""
    other = _WITH_ALPHA.get(stream.codec_context.codec.canonical_name)
    if other is None or stream.metadata.get("alpha_mode") != "1":
        return stream.codec_context
    try:
        decoder = VideoCodecContext.create(other, "r")
    except UnknownCodecError:  # in builds of FFmpeg without it
        return stream.codec_context
    assert isinstance(decoder, VideoCodecContext)
    return decoder


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Raise FFmpeg's errors as `VideoError`."""
    try:
        yield
    except av.error.FFmpegError as error:
        reason = (error.strerror or str(error)).lower()
        raise VideoError(f"{path} cannot be decoded ({reason}); the file is damaged or incomplete") from error


def checked_path(path: str | Path, expected: str) -> Path:
    """The path, absolute, of a file that exists and is not empty."""
    path = Path(path)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise VideoError(f"{expected}, but there is no file {path}") from error
    if path.is_dir():
        raise VideoError(f"{expected}, but {path} is a folder")
    if not path.is_file():
        raise VideoError(f"{expected}, but {path} is no regular file")
    if not os.access(path, os.R_OK):
        raise VideoError(f"{expected}, but there is no permission to read {path}")
    if found.st_size == 0:
        raise VideoError(f"{expected}, but {path} is empty")
    return path


def _open(path: Path, limits: VideoLimits) -> InputContainer:
    try:
        return av.open(
            str(path.absolute()),  # absolute, so that no name can be taken for a protocol
            options=_decoder_options(limits),
            container_options={"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except av.error.FFmpegError as error:
        other = _name_container(path)
        if other is not None:
            raise VideoError(
                f"{_EXPECTED}, but {path} is {other}; convert it, for example with "
                f"`ffmpeg -i {path.name} -c:v libx264 -pix_fmt yuv420p {path.stem}.mp4`"
            ) from error
        raise VideoError(f"{_EXPECTED}, but {path} is none, or is damaged or incomplete") from error


def _name_container(path: Path) -> str | None:
    """Return the name of a container that is not read, by how such a file begins; None for any other file."""
    with path.open("rb") as file:
        start = file.read(512)
    for name, magic in _OTHER_CONTAINERS.items():
        if start.startswith(magic):
            return name
    if start[8:12] == b"WEBP" and b"ANIM" in start:
        return "an animated WebP"
    # Packets of 188 bytes, behind a time stamp of 4 bytes in those of cameras.
    if any(len(start) > at + 188 and start[at] == start[at + gap] == 0x47 for at, gap in ((0, 188), (4, 192))):
        return "an MPEG transport stream"
    return None


def _decoder_options(limits: VideoLimits) -> dict[str, str]:
    side = int(limits.max_pixels**0.5) + _ALIGNMENT
    return {"max_pixels": str(max(side * side, limits.max_pixels)), "codec_whitelist": ",".join(_DECODERS)}


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise VideoError(f"{_EXPECTED}, but {path} holds no video stream")
    stream = streams[0]
    codec = stream.codec_context.codec.canonical_name if stream.codec_context is not None else "unknown"
    if codec not in CODECS:
        raise VideoError(f"the codec {codec} of {path} is not read; convert it to one of {', '.join(CODECS)}")
    return stream


def _checked_size(path: Path, stream: VideoStream, limits: VideoLimits) -> tuple[int, int]:
    height, width = stream.codec_context.height, stream.codec_context.width
    if height < 1 or width < 1:
        # FFmpeg forgets the size of a stream whose first frame it was not allowed to decode.
        raise VideoError(
            f"expected frames of at most {limits.max_pixels / 1e6:.3g} megapixels, but those of {path} are larger, or "
            f"the file is damaged; scale it down, or in Python raise max_pixels in VideoLimits"
        )
    check_frame_size(path, height, width, limits)
    return height, width


def check_frame_size(path: Path, height: int, width: int, limits: VideoLimits) -> None:
    """Raise `VideoError` if a frame of this size is over the limit."""
    if height * width > limits.max_pixels:
        raise VideoError(
            f"expected frames of at most {limits.max_pixels / 1e6:.3g} megapixels, but those of {path} are "
            f"{width}x{height} (width x height); scale it down, or in Python raise max_pixels in VideoLimits"
        )


def _pixel_aspect(stream: VideoStream) -> float:
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return float(aspect) if Fraction(1, 20) <= aspect <= 20 else 1.0  # beyond that it is a damaged header


def _survey(
    path: Path, container: InputContainer, stream: VideoStream, size: tuple[int, int], max_frames: int
) -> Survey:
    promised = _promised_packets(container, stream)
    tick = stream.time_base or Fraction(1, 1000)
    rate = float(stream.average_rate or stream.guessed_rate or 0) or None
    # For each frame its time stamp and its group, and for each group that of its keyframe; hours of video fit.
    stamps, groups, starts = array("q"), array("q"), array("q")
    num_packets, end = 0, 0.0
    for packet in container.demux():
        if packet.size == 0:
            continue
        if packet.pts is not None and packet.time_base is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index != stream.index:
            continue
        num_packets += 1
        if packet.is_keyframe or not starts:
            starts.append(_NO_TIME if packet.pts is None else packet.pts)
        if packet.is_corrupt:
            raise VideoError(f"{path} breaks off after {num_packets} frames; the file is damaged or incomplete")
        if not packet.is_discard:  # of what an edit list cuts away, only the decoder hears
            stamps.append(_NO_TIME if packet.pts is None else packet.pts)
            groups.append(len(starts) - 1)
        if num_packets > max_frames:
            raise _too_many_frames(path, max_frames)
    _check_complete(path, container, num_packets, promised, end)
    if not stamps:
        raise VideoError(f"expected at least one frame, but {path} holds none")
    pieces = (np.array(stamps, np.int64), np.array(groups, np.int64), np.array(starts, np.int64))
    return _ordered(size, *pieces, tick, rate)


def _ordered(
    size: tuple[int, int],
    stamps: Integers,
    groups: Integers,
    starts: Integers,
    tick: Fraction,
    rate: float | None,
) -> Survey:
    """Bring what was found in the order of storage into the order of presentation."""
    if _NO_TIME in stamps or _NO_TIME in starts:
        fps = rate or 25.0
        counted: Times = np.arange(len(stamps)) / fps
        groups, duration = np.zeros(len(stamps), np.int64), len(stamps) / fps
        return Survey(*size, counted, groups, np.zeros(1), fps, duration, float(tick), timed=False)
    order = np.argsort(stamps, kind="stable")
    times: Times = (stamps[order] * float(tick)).astype(np.float64)
    mean = mean_rate(times)
    # The nominal rate is exact where it is right; a mean over rounded times is not.
    fps = rate if rate and (mean is None or abs(mean - rate) < 0.02 * rate) else (mean or 25.0)
    group_starts: Times = (starts * float(tick)).astype(np.float64)
    duration = float(times[-1] - times[0]) + 1 / fps
    return Survey(*size, times, groups[order], group_starts, fps, duration, float(tick), timed=True)


def _cut(path: Path, survey: Survey, start: float, end: float, num_frames: int | None, limits: VideoLimits) -> Survey:
    """Keep what is shown from `start` on and before `end`, at most so many frames, and hold it to the limits."""
    times = survey.times - survey.times[0]
    slack = 1e-6  # time stamps are rounded
    first, last = np.searchsorted(times, [start - slack, end - slack])
    if first == last:
        raise VideoError(f"expected frames from {start:g} s on, but {path} lasts {times[-1]:g} s")
    last = last if num_frames is None else min(last, first + num_frames)
    kept: Times = survey.times[first:last]
    section = replace(survey, times=kept, groups=survey.groups[first:last], fps=_section_rate(survey, kept))
    # Whole groups are decoded, and the one before them, which leading pictures may need.
    low, high = section.groups.min() - 1, section.groups.max()
    num_decoded = int(((survey.groups >= low) & (survey.groups <= high)).sum())
    _check_extent(path, section, num_decoded, limits)
    return section


def _section_rate(survey: Survey, times: Times) -> float:
    """Return the mean rate of a section, which is the file's unless more than rounding tells them apart."""
    mean = mean_rate(times)
    if mean is None:
        return survey.fps
    rounding = 0.02 / survey.fps + survey.tick / (len(times) - 1)
    return survey.fps if abs(1 / mean - 1 / survey.fps) < rounding else mean


def _promised_packets(container: InputContainer, stream: VideoStream) -> int:
    """Frames that the file's own table promises; 0 if it has none."""
    if "mov" in container.format.name:
        return len(stream.index_entries)  # unlike the header's count, what is left after an edit list
    return stream.frames


def _check_complete(path: Path, container: InputContainer, num_packets: int, promised: int, end: float) -> None:
    """Headers of whole files may be off by a little; a file that was cut short lacks a good part."""
    if promised and num_packets < min(promised - 1, 0.95 * promised):
        raise VideoError(
            f"{path} breaks off: its header promises {promised} frames, {num_packets} are there; the file is incomplete"
        )
    duration = (container.duration or 0) / av.time_base  # some writers count it from 0, others from the first frame
    if "matroska" in container.format.name and end < 0.9 * duration - 0.5:
        raise VideoError(
            f"{path} breaks off: its header promises {duration:.1f} s, {end:.1f} s are there; the file is incomplete"
        )


def _too_many_frames(path: Path, most: int) -> VideoError:
    return VideoError(
        f"expected at most {most} frames, but {path} holds more; cut it, read a section of it (start and end), or in "
        f"Python raise max_frames in VideoLimits"
    )


def _check_extent(path: Path, survey: Survey, num_decoded: int, limits: VideoLimits) -> None:
    duration = survey.times[-1] - survey.times[0] + 1 / survey.fps
    if duration > limits.max_duration:
        raise VideoError(
            f"expected at most {limits.max_duration:g} s of video, but {path} lasts {duration:.1f} s; "
            f"cut it, read a section of it (start and end), or in Python raise max_duration in VideoLimits"
        )
    if num_decoded > limits.max_frames:
        raise _too_many_frames(path, limits.max_frames)
    total = num_decoded * survey.height * survey.width
    if total > limits.max_total_pixels:
        raise VideoError(
            f"expected at most {limits.max_total_pixels / 1e9:.3g} gigapixels over all frames, but {path} unfolds to "
            f"{total / 1e9:.3g} ({3 * total / 1e9:.3g} GB of RGB); cut it, scale it down, or in Python raise "
            f"max_total_pixels in VideoLimits"
        )
