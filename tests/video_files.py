"""Video files as other programs would make them."""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from sememe.video import Clip


@dataclass(frozen=True)
class Recipe:
    """What to tell the encoder and the container of a test file."""

    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    rate: Fraction | int = 8
    container: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    muxing: dict[str, str] = field(default_factory=dict)
    sample_aspect: Fraction | None = None
    rotation: float | None = None
    times: Sequence[float] | None = None
    audio: bool = False


def encode(path: Path, frames: np.ndarray, recipe: Recipe | None = None) -> Path:
    """Encode uint8 frames (frame, height, width, 3 or 4) with plain PyAV, not with the code under test."""
    recipe = recipe or Recipe()
    with av.open(str(path), "w", format=recipe.container, container_options=recipe.muxing) as output:
        stream = output.add_stream(recipe.codec, rate=recipe.rate, options=recipe.options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = recipe.pixel_format
        if recipe.sample_aspect is not None:
            stream.codec_context.sample_aspect_ratio = recipe.sample_aspect
        if recipe.rotation is not None:
            stream.set_display_rotation(recipe.rotation)
        if recipe.times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = output.add_stream("aac", rate=16000) if recipe.audio else None
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgba" if array.shape[2] == 4 else "rgb24")
            if recipe.times is not None:
                frame.pts, frame.time_base = round(recipe.times[number] * 1000), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        if not len(frames):
            output.start_encoding()  # without a frame nothing else would write the file
        output.mux(stream.encode(None))
        if sound is not None:
            assert isinstance(sound, AudioStream)
            _mux_silence(output, sound)
    if recipe.codec == "libsvtav1" and hasattr(os, "sched_setscheduler"):
        # Run by root, this encoder makes the calling thread a real-time one, and everything beside it stands still.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def _mux_silence(output: av.container.OutputContainer, stream: AudioStream) -> None:
    for number in range(32):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 1024 * number
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def patch_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Overwrite the matrix in the track header of an mp4: (column, row) is shown at (a column + c row, b column + d "
    f"row)."""
    data = bytearray(path.read_bytes())
    start = data.find(b"tkhd") + 4 + 40  # version and flags, times, identifier, duration, layer, volume
    one = 1 << 16
    data[start : start + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    return path


def counting_frames(num_frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Grey frames whose brightness tells their number: frame i has the value 4 i."""
    assert num_frames <= 64
    values = (4 * np.arange(num_frames)).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (num_frames, height, width, 3)).copy()


def frame_numbers(clip: Clip) -> list[int]:
    """The numbers of `counting_frames` that a clip shows."""
    means = clip.frames.reshape(clip.num_frames, -1).mean(axis=1)
    return np.round(means / 4).astype(int).tolist()


def quadrants(height: int = 32, width: int = 48) -> np.ndarray:
    """A picture whose corners are red, green, blue and white, clockwise from top left."""
    picture = np.zeros((height, width, 3), np.uint8)
    middle, centre = height // 2, width // 2
    picture[:middle, :centre] = (255, 0, 0)
    picture[:middle, centre:] = (0, 255, 0)
    picture[middle:, centre:] = (0, 0, 255)
    picture[middle:, :centre] = (255, 255, 255)
    return picture


def corner_names(picture: np.ndarray) -> str:
    """The first letters of the colours of the corners, clockwise from top left; upright `quadrants` are "rgbw"."""
    height, width = picture.shape[:2]
    spots = [(height // 4, width // 4), (height // 4, 3 * width // 4)]
    spots += [(3 * height // 4, 3 * width // 4), (3 * height // 4, width // 4)]
    names = {(255, 0, 0): "r", (0, 255, 0): "g", (0, 0, 255): "b", (255, 255, 255): "w"}

    def name(colour: np.ndarray) -> str:
        return names[min(names, key=lambda known: int(np.abs(np.array(known) - colour.astype(int)).sum()))]

    return "".join(name(picture[spot]) for spot in spots)
