"""Reading a clip from a video file, with bounded memory."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.filter.graph import Graph
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from sememe.errors import InputError, VideoError
from sememe.video.clip import Clip, Image, VideoLimits
from sememe.video.colors import is_hdr, over_white, tone_map
from sememe.video.resizing import (
    Sampling,
    Times,
    check_sampling,
    check_size,
    pick_frames_at,
    resampled_rate,
    resize_image,
)
from sememe.video.source import Source, Survey, check_frame_size, open_source, survey_video


def read_clip(
    path: str | Path,
    *,
    num_frames: int | None = None,
    sampling: Sampling = "even",
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    max_size: int | None = None,
    start: float | None = None,
    end: float | None = None,
    limits: VideoLimits | None = None,
    survey: Survey | None = None,
) -> Clip:
    """Read a video file (mp4, mov, webm, mkv, avi or gif; the first video stream; sound is ignored).

    Frames come upright (rotation and mirroring of the file applied), with square pixels, as sRGB; HDR is tone-mapped.
    What is transparent becomes white, where the decoder hands transparency on; of interlaced frames one field is read.
    Only the frames that are asked for are kept, each resized as soon as it is decoded, and stretches in which none is
    wanted are skipped: a minute of 4K costs no more memory than its chosen frames.

    Args:
        path: Path of the file.
        num_frames: Frames to take; None takes all (with `sampling="fps"`: all at that rate). Shorter videos repeat
            frames.
        sampling: Which frames to take, see `Sampling`. Where the frame rate varies, by time.
        fps: Frames a second to take; with `sampling="fps"` only.
        size: (height, width) of the clip in pixels; proportions are kept, what sticks out is cropped equally
            on both sides.
        max_size: Longest side of the clip in pixels; larger videos are scaled down, smaller ones keep their size. Not
            with `size`.
        start: Seconds from the first frame; earlier frames count as cut off. None for the first frame.
        end: Seconds from the first frame; frames from then on count as cut off. None for the end.
        limits: What the file, or its section from `start` to `end`, is held to, `VideoLimits()` if None.
        survey: What `survey_video` found in this file between the same `start` and `end`, to spare a second pass.

    Returns:
        the clip. Its rate is `fps` if that is given; the file's own (mean) rate if all or the first frames are taken;
        and the rate at which it lasts as long as the file, from the first frame to the last, if frames are spread
        evenly.

    Raises:
        VideoError: The file is missing, is no video, has no frame (between start and end), is not within the limits, or
            is damaged. A file counts as damaged if FFmpeg cannot decode it, or if over 5 % of the frames that its
            header promises are missing, as in a copy that was cut short. Damage that still decodes is not detected.
        InputError: An argument is out of range, or without effect.
    """
    limits = limits or VideoLimits()
    _check_arguments(num_frames, sampling, fps, size, max_size)
    survey = survey or survey_video(path, limits, start=start, end=end)
    with open_source(path, limits, survey) as source:
        geometry = _geometry(source, size, max_size)
        # Checked before the frames are picked as well: the list of picks alone could fill the memory.
        _check_kept(source, (num_frames or 0) * geometry.height * geometry.width * 3, limits)
        picks, rate = _pick(survey.times, survey.fps, num_frames, sampling, fps)
        _check_kept(source, len(picks) * geometry.height * geometry.width * 3, limits)
        return Clip(_collect(source, picks, geometry, limits), rate)


def _check_arguments(
    num_frames: int | None, sampling: Sampling, fps: float | None, size: tuple[int, int] | None, max_size: int | None
) -> None:
    check_sampling(sampling, num_frames, fps, rate_name="fps")
    if sampling == "first" and num_frames is None:
        raise InputError('sampling="first" needs num_frames')
    if size is not None and max_size is not None:
        raise InputError("expected size or max_size, got both; leave one out")
    if size is not None:
        check_size(*size)
    if max_size is not None and max_size < 1:
        raise InputError(f"expected max_size of at least 1 pixel, got {max_size}")


@dataclass(frozen=True)
class _Geometry:
    """Height and width of the result, before the file's rotation is applied; with `exact`, after it."""

    height: int
    width: int
    exact: bool


def _geometry(source: Source, size: tuple[int, int] | None, max_size: int | None) -> _Geometry:
    if size is not None:
        return _Geometry(*size, exact=True)
    # Square pixels by enlarging the shorter side, so that no detail is lost.
    aspect = source.pixel_aspect
    height, width = source.height * max(1, 1 / aspect), source.width * max(1, aspect)
    scale = min(1.0, max_size / max(height, width)) if max_size else 1.0
    return _Geometry(max(1, round(height * scale)), max(1, round(width * scale)), exact=False)


def _pick(
    times: Times, own_rate: float, num_frames: int | None, sampling: Sampling, fps: float | None
) -> tuple[np.ndarray, float]:
    """Return which of the frames are taken, and the rate of the result."""
    if num_frames is None and fps is None:
        return np.arange(len(times)), own_rate
    picks = pick_frames_at(times, num_frames, sampling, target_fps=fps)
    return picks, resampled_rate(sampling, len(picks), len(times), own_rate, fps)


def _check_kept(source: Source, num_bytes: int, limits: VideoLimits) -> None:
    if num_bytes > limits.max_kept_bytes:
        raise VideoError(
            f"{source.path} would take {num_bytes / 1e9:.2f} GB of memory, the limit is "
            f"{limits.max_kept_bytes / 1e9:.2f} GB; take fewer frames (num_frames=...) or smaller ones (max_size=... "
            f"or size=(height, width))"
        )


def _collect(source: Source, picks: np.ndarray, geometry: _Geometry, limits: VideoLimits) -> np.ndarray:
    """Decode and keep the picked frames: of each picked time, the last frame that is shown at or before it."""
    times = source.survey.times[picks]
    intervals = np.diff(source.survey.times)
    slack = 0.25 * float(intervals[intervals > 0].min(initial=1 / source.survey.fps))
    shelf = _Shelf(len(picks), _Converter(geometry, source.pixel_aspect))
    previous: VideoFrame | None = None
    for time, frame in _decode(source, picks, limits):
        if previous is not None:
            # Is the picked moment over? Then the frame before this one was the one shown.
            shelf.put(previous, int(np.searchsorted(times, time - slack)))
        if shelf.is_full:
            break
        previous = frame
    if previous is None:
        raise VideoError(f"expected at least one frame, but none of {source.path} can be decoded")
    shelf.put(previous, len(picks))
    num_wanted = len(np.unique(picks))
    if shelf.num_converted < min(num_wanted - 1, 0.95 * num_wanted):
        raise VideoError(
            f"only {shelf.num_converted} of {num_wanted} frames of {source.path} can be decoded; the file is damaged"
        )
    return shelf.frames


def _decode(source: Source, picks: np.ndarray, limits: VideoLimits) -> Iterator[tuple[float, VideoFrame]]:
    """Decode the groups of packets that hold the picked frames; yield (seconds, frame) in the order of presentation."""
    decoder, survey = source.decoder, source.survey
    counter = _Counter(source, limits)
    wanted = _wanted_groups(source, picks)
    group, decoding = -1, False
    for packet in source.container.demux(source.stream):
        if packet.size == 0:
            continue
        if packet.is_keyframe or group < 0:
            group += 1
        if not survey.timed or group in wanted:
            decoding = True
            yield from counter.count(decoder.decode(packet))
        elif decoding:
            decoding = False
            yield from counter.count(decoder.decode(None))
            decoder.flush_buffers()
    if decoding:
        yield from counter.count(decoder.decode(None))


def _wanted_groups(source: Source, picks: np.ndarray) -> set[int]:
    """The groups that the picked frames are stored in.

    A frame that is shown before the keyframe of its group (a leading picture) needs the group before as well.
    """
    survey = source.survey
    groups = survey.groups[picks]
    leading = survey.times[picks] < survey.group_starts[groups]
    return set(groups.tolist()) | set((groups[leading] - 1).tolist())


class _Counter:
    """Holds frames to the limits as they come out of the decoder, since headers lie, and tells their times."""

    def __init__(self, source: Source, limits: VideoLimits) -> None:
        self._source = source
        self._limits = limits
        self._num_frames = 0
        self._num_pixels = 0

    def count(self, frames: list[VideoFrame]) -> Iterator[tuple[float, VideoFrame]]:
        path, limits, survey = self._source.path, self._limits, self._source.survey
        for frame in frames:
            check_frame_size(path, frame.height, frame.width, limits)
            self._num_frames += 1
            self._num_pixels += frame.height * frame.width
            if self._num_frames > limits.max_frames or self._num_pixels > limits.max_total_pixels:
                raise VideoError(f"{path} unfolds to more than its header says; the file is damaged")
            if survey.timed and frame.pts is not None:
                yield frame.pts * survey.tick, frame
            else:
                yield (self._num_frames - 1) / survey.fps, frame


class _Shelf:
    """Room for the frames that are kept, filled from front to back."""

    def __init__(self, num_frames: int, converter: "_Converter") -> None:
        self._num_frames = num_frames
        self._converter = converter
        self._frames: np.ndarray | None = None
        self._num_filled = 0
        self.num_converted = 0

    @property
    def is_full(self) -> bool:
        return self._num_filled == self._num_frames

    @property
    def frames(self) -> np.ndarray:
        assert self._frames is not None
        assert self.is_full
        return self._frames

    def put(self, frame: VideoFrame, end: int) -> None:
        """Fill the places up to `end`, if any are left, with this frame."""
        if end <= self._num_filled:
            return
        image = self._converter.convert(frame)
        if self._frames is None:
            self._frames = np.empty((self._num_frames, *image.shape), np.uint8)
        self._frames[self._num_filled : end] = image
        self._num_filled = end
        self.num_converted += 1


class _Converter:
    """Turns decoded frames into upright RGB pictures of one size."""

    def __init__(self, geometry: _Geometry, pixel_aspect: float) -> None:
        self._geometry = geometry
        self._pixel_aspect = pixel_aspect
        self._reformatter = VideoReformatter()
        self._orientation: _Orientation | None = None

    def convert(self, frame: VideoFrame) -> Image:
        # Once per file: in PyAV 18.1 side data and frame hold each other, which keeps the frame's memory (25 MB in 4K)
        # until Python collects cycles.
        orientation = self._orientation = self._orientation or _orientation(frame)
        image = self._to_rgb(_take_field(frame) if frame.interlaced_frame else frame)
        height, width = self._geometry.height, self._geometry.width
        aspect = self._pixel_aspect * image.shape[0] / frame.height  # the lines of one field are twice as high
        if orientation.transposed:
            image, aspect = image.swapaxes(0, 1), 1 / aspect
            if not self._geometry.exact:
                height, width = width, height
        image = image[:: -1 if orientation.flipped_rows else 1, :: -1 if orientation.flipped_columns else 1]
        return resize_image(np.ascontiguousarray(image), height, width, "cover", aspect)

    def _to_rgb(self, frame: VideoFrame) -> np.ndarray:
        transparent = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
        # Files that do not name their matrix mean BT.601 if they are small and BT.709 if they are large.
        unnamed = frame.colorspace == _UNSPECIFIED and frame.height >= 720
        hdr = is_hdr(frame.color_trc) and not transparent
        converted = self._reformatter.reformat(
            frame,
            format="rgba" if transparent else "rgb48le" if hdr else "rgb24",
            src_colorspace=Colorspace.ITU709 if unnamed else None,
            interpolation=_INTERPOLATION,
        )
        array = converted.to_ndarray()
        if hdr:
            return tone_map(array, frame.color_trc)
        return over_white(array) if transparent else array


_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
_INTERPOLATION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True)
class _Orientation:
    """What brings a stored frame upright: swap its axes, then mirror its rows or columns."""

    transposed: bool = False
    flipped_rows: bool = False
    flipped_columns: bool = False


def _take_field(frame: VideoFrame) -> VideoFrame:
    """Return every second line of an interlaced frame: those of one moment, where all together show two."""
    graph = Graph()
    buffer = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1))
    graph.link_nodes(buffer, graph.add("field", "type=top"), graph.add("buffersink")).configure()
    graph.push(frame)
    field = graph.pull()
    assert isinstance(field, VideoFrame)
    return field


def _orientation(frame: VideoFrame) -> _Orientation:
    """Read the display matrix (a, b, u, c, d, v, x, y, w), which shows (column, row) at (a column + c row, b column +
    d row)."""
    matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)  # type: ignore[call-overload]  # its stub says str
    if matrix is None:
        return _Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return _Orientation(transposed=True, flipped_rows=b < 0, flipped_columns=c < 0)
    return _Orientation(flipped_rows=d < 0, flipped_columns=a < 0)
