"""Writing clips to a video file, at once or piece by piece."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import av
import numpy as np
import PIL.Image
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from sememe.errors import InputError, OutputError
from sememe.files import atomic_path
from sememe.video.clip import Clip

Codec = Literal["h264", "vp9", "ffv1", "gif"]


@dataclass(frozen=True)
class _Encoder:
    """How a codec is asked of FFmpeg. `quality` is the default CRF, the range is what the encoder takes."""

    name: str
    pixel_format: str
    options: dict[str, str]
    quality: float = 0
    max_quality: float = 0


# What would give other bytes for the same frames is off: a number of threads that depends on the machine, and x264's
# macroblock tree, whose assembly code has been seen to give different results for the same input in one process.
_ENCODERS = {
    "h264": _Encoder(
        "libx264", "yuv420p", {"preset": "medium", "threads": "4", "mbtree": "0"}, quality=16, max_quality=51
    ),
    "vp9": _Encoder(
        "libvpx-vp9",
        "yuv420p",
        {"deadline": "good", "cpu-used": "4", "b": "0", "threads": "1"},
        quality=24,
        max_quality=63,
    ),
    "ffv1": _Encoder("ffv1", "bgr0", {"level": "1", "threads": "1"}),  # level 3 cannot do sides of one pixel
}
WRITTEN_VIDEOS: dict[str, tuple[str, tuple[Codec, ...]]] = {
    ".mp4": ("mp4", ("h264", "vp9")),
    ".mov": ("mov", ("h264",)),
    ".mkv": ("matroska", ("h264", "vp9", "ffv1")),
    ".webm": ("webm", ("vp9",)),
    ".gif": ("gif", ("gif",)),
}
"""Containers by FFmpeg's names and their codecs, by the endings of files that `write_clip` writes."""
_BT709 = 1  # AVCOL_SPC_BT709, AVCOL_PRI_BT709 and AVCOL_TRC_BT709
_LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG
_INTERPOLATION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def write_clip(
    clip: Clip,
    path: str | Path,
    *,
    codec: Codec | None = None,
    quality: float | None = None,
    lossless: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a clip to an mp4, mov, mkv, webm or gif file, atomically.

    The same clip and settings give the same bytes on one machine. Colours are BT.709, limited range, and say so. H.264
    and VP9 are 4:2:0, which all players show; a clip with an odd side has its last row or column repeated there, so
    that it is read back one pixel larger. An mp4 can be played while it is still being loaded (faststart).

    Args:
        clip: Clip to write.
        path: Path of the file; the suffix chooses the container.
        codec: `h264` for mp4, mov and mkv, `vp9` for webm and `gif` for gif, unless said otherwise.
        quality: The encoder's constant rate factor, lower is better: 0 to 51 for `h264` (16), 0 to 63 for `vp9` (24).
        lossless: Whether to keep every pixel as it is (FFV1); needs an mkv.
        metadata: Texts by name, stored as one JSON object in the file's `comment` (not in gif).

    Raises:
        InputError: The settings do not fit together.
        OutputError: The suffix is unknown, or the file cannot be written: no such folder, no permission, disk full.
    """
    write_clips([clip], path, codec=codec, quality=quality, lossless=lossless, metadata=metadata)


def write_clips(
    clips: Iterable[Clip],
    path: str | Path,
    *,
    codec: Codec | None = None,
    quality: float | None = None,
    lossless: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write clips, one after another, as one video; each is taken when the one before is encoded.

    So a long video need not be in memory at once. The file is the one that `write_clip` makes of all frames together;
    if `clips` raises, no file is left.

    Args:
        clips: Pieces of the video, at least one, of one size and rate.
        path: As for `write_clip`, like all that follows.
        codec: Codec.
        quality: Constant rate factor.
        lossless: Whether every pixel is kept.
        metadata: Stored in the file.

    Raises:
        InputError: The settings do not fit together, or the pieces differ in size or rate.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    container, codec = _choose(path, codec, lossless=lossless)
    options = _options(codec, quality)
    comment = json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False) if metadata else None
    if codec == "gif" and comment:
        raise InputError("metadata cannot be kept in a gif; write an mp4 or leave it out")
    pieces = _check_pieces(clips)
    with atomic_path(path) as part:
        try:
            if codec == "gif":
                _write_gif(pieces, part)
            else:
                _encode(pieces, part, container, _ENCODERS[codec], options, comment)
        except av.error.FFmpegError as error:
            raise OSError(error.errno, error.strerror) from error  # which comes out as an OutputError


def _check_pieces(clips: Iterable[Clip]) -> Iterator[Clip]:
    first: Clip | None = None
    for clip in clips:
        first = first or clip
        if (clip.size, clip.fps) != (first.size, first.fps):
            raise InputError(f"expected pieces of one size and rate, got {first!r} and then {clip!r}")
        yield clip
    if first is None:
        raise InputError("expected at least one clip to write, got none")


def check_video_name(path: Path) -> None:
    """Raise `OutputError` for the name of a file that `write_clip` cannot write."""
    if path.suffix.lower() not in WRITTEN_VIDEOS:
        raise OutputError(f"expected a file name ending in {', '.join(WRITTEN_VIDEOS)}, got {path.name}")


def _choose(path: Path, codec: Codec | None, *, lossless: bool) -> tuple[str, Codec]:
    check_video_name(path)
    container, codecs = WRITTEN_VIDEOS[path.suffix.lower()]
    if lossless:
        if codec not in {None, "ffv1"}:
            raise InputError(f'lossless is written with codec="ffv1", got codec="{codec}"; leave one of the two out')
        codec = "ffv1"
    codec = codec or codecs[0]
    if codec not in get_args(Codec):
        raise InputError(f"expected codec to be one of {', '.join(get_args(Codec))}, got {codec!r}")
    if codec not in codecs:
        advice = "; name the file .mkv" if codec == "ffv1" else ""
        raise InputError(f"{path.suffix} files are written with {' or '.join(codecs)}, not {codec}{advice}")
    return container, codec


def _options(codec: Codec, quality: float | None) -> dict[str, str]:
    encoder = _ENCODERS.get(codec)
    if encoder is None or not encoder.max_quality:
        if quality is not None:
            raise InputError(f"quality has no effect on {codec}; leave it out")
        return dict(encoder.options) if encoder else {}
    crf = encoder.quality if quality is None else quality
    if not 0 <= crf <= encoder.max_quality:
        raise InputError(f"expected quality in 0 (best) to {encoder.max_quality:g} for {codec}, got {crf}")
    return {**encoder.options, "crf": f"{crf:g}"}


def _encode(
    clips: Iterator[Clip], path: Path, container: str, encoder: _Encoder, options: dict[str, str], comment: str | None
) -> None:
    clip = next(clips)
    muxing = {"fflags": "+bitexact"}  # no random identifiers, no time of writing
    if container in {"mp4", "mov"}:
        muxing["movflags"] = "+faststart"
    with av.open(str(path.absolute()), "w", format=container, container_options=muxing) as output:
        if comment:
            output.metadata["comment"] = comment
        # As a ratio of small numbers 30000/1001 comes back from its float exactly.
        rate = max(Fraction(clip.fps).limit_denominator(60_000), Fraction(1, 60_000))
        stream = output.add_stream(encoder.name, rate=rate, options=options)
        assert isinstance(stream, VideoStream)
        subsampled = encoder.pixel_format == "yuv420p"
        stream.height = clip.height + (clip.height % 2 if subsampled else 0)
        stream.width = clip.width + (clip.width % 2 if subsampled else 0)
        stream.pix_fmt = encoder.pixel_format
        if subsampled:
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
        reformatter = VideoReformatter()
        for piece in chain([clip], clips):
            for frame in piece.frames:
                output.mux(stream.encode(_convert(frame, stream, reformatter)))
        output.mux(stream.encode(None))


def _convert(frame: np.ndarray, stream: VideoStream, reformatter: VideoReformatter) -> VideoFrame:
    height, width = frame.shape[:2]
    padded = np.pad(frame, ((0, stream.height - height), (0, stream.width - width), (0, 0)), mode="edge")
    rgb = VideoFrame.from_ndarray(padded, format="rgb24")
    if stream.pix_fmt != "yuv420p":
        return reformatter.reformat(rgb, format=stream.pix_fmt)
    converted = reformatter.reformat(
        rgb,
        format=stream.pix_fmt,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=_INTERPOLATION,
    )
    converted.color_primaries = converted.color_trc = _BT709
    return converted


def _write_gif(clips: Iterator[Clip], path: Path) -> None:
    first = next(clips)
    frames = (frame for clip in chain([first], clips) for frame in clip.frames)
    images = (_make_gif_frame(frame, number, first.fps) for number, frame in enumerate(frames))
    next(images).save(path, format="GIF", save_all=True, append_images=images, loop=0, optimize=False)


def _make_gif_frame(frame: np.ndarray, number: int, fps: float) -> PIL.Image.Image:
    image = PIL.Image.fromarray(frame).quantize(256, method=PIL.Image.Quantize.MEDIANCUT)
    # In hundredths of a second, as a GIF has them; rounded so that the frames together last as long as they should.
    start, end = (round(100 * place / fps) for place in (number, number + 1))
    image.info["duration"] = 10 * (end - start)
    return image
