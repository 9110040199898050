"""Can damaged files crash the readers of videos and pictures, keep them busy, or fill the memory?

Small files of every kind that is read are damaged in ways drawn from a seed: cut off, bits turned, headers overwritten,
parts deleted or doubled, sizes made huge. Each must be read, or be refused with a `VideoError`, within bounds of
processor time and memory. The program ends with exit code 1 if one is not.

    PYTHONPATH=tests python tests/mutations/media.py [--number 200] [--seed 0] [--keep FOLDER]
"""

import argparse
import contextlib
import multiprocessing
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sememe.errors import VideoError
from sememe.video import read_clip, read_image
from video_files import Recipe, encode

MAX_SECONDS = 10.0
"""Of processor time, for one file."""
MAX_MEMORY = 700
"""MB of memory that is resident at once, the interpreter's included."""
READ, REFUSED = "read", "refused"
VIDEOS = {
    "h264.mp4": Recipe(options={"g": "4"}),
    "fragmented.mp4": Recipe(options={"g": "4"}, muxing={"movflags": "frag_keyframe+empty_moov"}),
    "hevc.mov": Recipe(codec="libx265", options={"x265-params": "log-level=none:pools=1"}),
    "vp9.webm": Recipe(codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime"}),
    "av1.mkv": Recipe(codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"}),
    "mpeg4.avi": Recipe(codec="mpeg4"),
    "prores.mov": Recipe(codec="prores_ks", pixel_format="yuv422p10le"),
    "ffv1.mkv": Recipe(codec="ffv1", pixel_format="bgr0"),
    "png.mov": Recipe(codec="png", pixel_format="rgba"),
    "video.gif": Recipe(codec="gif", pixel_format="rgb8"),
}
PICTURES: dict[str, dict[str, Any]] = {
    "picture.png": {},
    "picture.jpg": {},
    "progressive.jpg": {"progressive": True, "exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00"},
    "picture.webp": {},
    "picture.tiff": {"compression": "tiff_lzw"},
    "picture.gif": {},
    "picture.avif": {},
}


def write_files(folder: Path, names: Collection[str]) -> list[Path]:
    """Write the files with these names, which are those of `VIDEOS` and `PICTURES`."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (8, 12, 18, 3), dtype=np.uint8)
    frames = small.repeat(4, axis=1).repeat(4, axis=2)  # blocks, so that files stay small
    opaque = np.full((*frames.shape[:3], 1), 255, np.uint8)
    for name in names:
        if name in PICTURES:
            Image.fromarray(frames[0]).save(folder / name, **PICTURES[name])
        else:
            has_alpha = VIDEOS[name].pixel_format == "rgba"
            encode(folder / name, np.concatenate([frames, opaque], axis=3) if has_alpha else frames, VIDEOS[name])
    return [folder / name for name in names]


def damage(data: bytes, random: np.random.Generator) -> bytes:
    """Return the contents of a file with one kind of damage."""
    changed = bytearray(data)
    place = int(random.integers(len(data)))
    length = int(random.integers(1, 65))
    match int(random.integers(6)):
        case 0:
            del changed[max(1, place) :]
        case 1:
            for bit in random.integers(8 * len(data), size=length):
                changed[int(bit) // 8] ^= 1 << (int(bit) % 8)
        case 2:
            for byte in random.integers(min(len(data), 512), size=length):
                changed[int(byte)] = int(random.integers(256))
        case 3:
            del changed[place : place + length * 8]
        case 4:
            changed[place:place] = changed[place : place + length * 8]
        case _:
            huge = (b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x01\x00\x00")
            changed[place : place + 4] = huge[int(random.integers(len(huge)))]
    return bytes(changed)


def read(path: Path) -> str:
    """Read a file as the package does, and return what became of it; other errors than a `VideoError` come out."""
    reader: Callable[[Path], Any] = read_clip if path.name in VIDEOS else read_image
    try:
        reader(path)
    except VideoError as error:
        return REFUSED if "\n" not in str(error) else f"refused in several lines: {error}"
    return READ


@dataclass(frozen=True)
class Outcome:
    """What became of one damaged file: read, refused, or what went wrong."""

    name: str
    number: int
    what: str

    @property
    def is_right(self) -> bool:
        """Whether it was read or refused."""
        return self.what in {READ, REFUSED}


def try_kind(path: Path, numbers: range, seed: int) -> list[Outcome]:
    """Read damaged copies of a file in processes of their own, which may die."""
    context = multiprocessing.get_context("fork")
    outcomes: list[Outcome] = []
    while len(outcomes) < len(numbers):
        receiver, sender = context.Pipe(duplex=False)
        rest = numbers[len(outcomes) :]
        process = context.Process(target=_read_copies, args=(path, rest, seed, sender))
        process.start()
        sender.close()
        with contextlib.suppress(EOFError):
            outcomes.extend(Outcome(path.name, number, receiver.recv()) for number in rest)
        process.join()
        code = -(process.exitcode or 0)
        if code:
            reason = "took too long" if code == signal.SIGPROF else f"died of signal {code}"
            outcomes.append(Outcome(path.name, numbers[len(outcomes)], reason))
    return outcomes


def make_copy(path: Path, number: int, seed: int) -> bytes:
    """Return the damaged contents with a number, which are the same on every machine for equal files."""
    kind = [*VIDEOS, *PICTURES].index(path.name)
    return damage(path.read_bytes(), np.random.default_rng([seed, kind, number]))


def _read_copies(path: Path, numbers: range, seed: int, sender: Connection) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        for number in numbers:
            copy.write_bytes(make_copy(path, number, seed))
            # The signal ends the process, also inside a decoder.
            signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
            try:
                what = read(copy)
            except Exception as error:  # what is looked for
                what = f"raised {type(error).__name__}: {error}"
            signal.setitimer(signal.ITIMER_PROF, 0)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
            is_large = memory > MAX_MEMORY
            sender.send(f"took {memory:.0f} MB" if is_large else what)
            if is_large:
                return  # the peak of a process does not fall


def main() -> int:
    """Damage and read; return the exit code."""
    parser = argparse.ArgumentParser(description="Read damaged videos and pictures.")
    parser.add_argument("--number", type=int, default=200, help="damaged copies of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for copies that were neither read nor refused")
    arguments = parser.parse_args()
    wrong: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in write_files(Path(folder), (*VIDEOS, *PICTURES)):
            outcomes = try_kind(path, range(arguments.number), arguments.seed)
            counts = Counter(each.what for each in outcomes if each.is_right)
            failed = [each for each in outcomes if not each.is_right]
            sys.stdout.write(f"{path.name}: {counts[READ]} read, {counts[REFUSED]} refused\n")
            for each in failed:
                sys.stdout.write(f"  number {each.number} {each.what}\n")
                if arguments.keep is not None:
                    shutil.copy(path, arguments.keep)
                    kept = arguments.keep / f"{each.number}-{path.name}"
                    kept.write_bytes(make_copy(path, each.number, arguments.seed))
            sys.stdout.flush()
            wrong += failed
    sys.stdout.write(f"{len(wrong)} were neither read nor refused.\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
