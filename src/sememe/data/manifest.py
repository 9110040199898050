"""Lists of video samples: VAP-Data's csv files, and a JSON-lines manifest with content hashes.

VAP-Data is the dataset of Video-As-Prompt (arXiv 2510.20888): a folder of videos with `vap_data.csv` for training and
`benchmark.csv` for evaluation beside them.
"""

import csv
import dataclasses
import io
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from sememe.errors import InputError
from sememe.files import atomic_path, hash_file, write_text

MANIFEST_NAME = "manifest.jsonl"
TRAINING_NAME = "vap_data.csv"
BENCHMARK_NAME = "benchmark.csv"
TRAINING_COLUMNS = (
    "video_paths",
    "ref_video_paths",
    "tar_video_caption",
    "kind",
    "split",
    "reference_alignment_score",
)
BENCHMARK_COLUMNS = ("video_paths", "ref_video_path", "tar_video_caption", "ref_video_caption")

_VALID = "_valid"
_MANIFEST_HEADER = {"format": "sememe manifest", "version": 1}
_NUM_READERS = 4
# A list of references in one cell may be longer than the csv module's default limit of 128 KiB.
_MAX_CELL = 16 * 1024 * 1024
_cell_limit_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class VideoSample:
    """One video of a dataset.

    `path` and `references` are relative to the dataset's folder, with forward slashes. `score` is VAP-Data's reference
    alignment score, 0 to 100. `scene`, `full_caption` (a caption that also names what happens), `segments` (where one
    thing happens after another: the second at which each ends, and a caption of it) and `sha256` (of the file, in
    hexadecimal) are kept by the JSON-lines manifest only.
    """

    path: str
    caption: str
    condition: str
    split: str = "train"
    references: tuple[str, ...] = ()
    score: float | None = None
    scene: str | None = None
    full_caption: str | None = None
    segments: tuple[tuple[float, str], ...] = ()
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class BenchmarkSample:
    """One row of a benchmark: the picture is frame 0 of the video at `path`."""

    path: str
    caption: str
    reference: str
    reference_caption: str


def read_samples(folder: Path, min_score: float = 0.0) -> tuple[VideoSample, ...]:
    """Read the list of a dataset's folder: its `manifest.jsonl`, or else its `vap_data.csv`.

    Args:
        folder: Folder of the dataset.
        min_score: Samples with a score (0 to 100) not above it are left out; those without a score are kept.

    Raises:
        InputError: There is no list, it cannot be read, or no sample is left.
    """
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file() and not (folder / TRAINING_NAME).is_file():
        raise InputError(f"expected {MANIFEST_NAME} or {TRAINING_NAME} in the dataset's folder {folder}")
    samples = read_manifest(manifest) if manifest.is_file() else read_vap_data(folder)
    if not samples:
        raise InputError(f"expected videos in the list of {folder}, got none; add some")
    kept = tuple(sample for sample in samples if sample.score is None or sample.score > min_score)
    if not kept:
        way = "lower min_score" if min_score else "correct the scores, or leave them out"
        raise InputError(
            f"expected videos with a score above {min_score:g} in {folder}, got none of {len(samples)}; {way}"
        )
    return kept


def read_vap_data(folder: Path | str) -> tuple[VideoSample, ...]:
    """Read `vap_data.csv` of a dataset's folder.

    Keeps rows whose `_valid`, where there is such a column, is above 0. The files themselves are not read.

    Raises `InputError` naming the columns that are missing, or the row and what is wrong with it.
    """
    path = Path(folder) / TRAINING_NAME
    return tuple(
        _parse_sample(path, number, row)
        for number, row in _read_rows(path, TRAINING_COLUMNS)
        if (_parse_number(path, number, _VALID, row.get(_VALID, "1")) or 0) > 0
    )


def write_vap_data(samples: Sequence[VideoSample], folder: Path | str) -> Path:
    """Write `vap_data.csv`; return its path. A missing score becomes 100. Raises `OutputError` if it cannot."""
    rows = []
    for sample in samples:
        references, score = json.dumps(list(sample.references)), 100.0 if sample.score is None else sample.score
        rows.append((sample.path, references, sample.caption, sample.condition, sample.split, score))
    return _write_rows(rows, TRAINING_COLUMNS, Path(folder) / TRAINING_NAME)


def write_benchmark(samples: Sequence[BenchmarkSample], folder: Path | str) -> Path:
    """Write `benchmark.csv`; return its path. Raises `OutputError` if it cannot."""
    rows = [(each.path, each.reference, each.caption, each.reference_caption) for each in samples]
    return _write_rows(rows, BENCHMARK_COLUMNS, Path(folder) / BENCHMARK_NAME)


def read_manifest(path: Path | str) -> tuple[VideoSample, ...]:
    """Read a JSON-lines manifest. Raises `InputError` naming the line and what is wrong with it."""
    path = Path(path)
    # Not splitlines: captions may hold other characters that count as line breaks there.
    lines = _read_text(path).removesuffix("\n").split("\n")
    if _parse_line(path, 1, lines[0]) != _MANIFEST_HEADER:
        raise InputError(f"{path} must begin with the line {json.dumps(_MANIFEST_HEADER)}; is it a sememe manifest?")
    return tuple(_sample_of(path, number, _parse_line(path, number, line)) for number, line in enumerate(lines[1:], 2))


def write_manifest(samples: Sequence[VideoSample], path: Path | str) -> Path:
    """Write a JSON-lines manifest; return its path. Raises `OutputError` if it cannot."""
    lines = [json.dumps(_MANIFEST_HEADER)]
    for sample in samples:
        values = {key: value for key, value in dataclasses.asdict(sample).items() if value not in (None, ())}
        lines.append(json.dumps(values, ensure_ascii=False))
    write_text(path, "\n".join(lines) + "\n")
    return Path(path)


def add_hashes(samples: Sequence[VideoSample], folder: Path | str) -> tuple[VideoSample, ...]:
    """The samples with the SHA-256 of their files. Raises `InputError` for a file that cannot be read."""
    return tuple(dataclasses.replace(sample, sha256=hash_file(Path(folder) / sample.path)) for sample in samples)


def hash_videos(folder: Path, paths: Sequence[str]) -> tuple[str | None, ...]:
    """The SHA-256 of each file of a folder; None for one that is not there or cannot be read."""

    def hash_video(path: str) -> str | None:
        try:
            return hash_file(folder / path)
        except InputError:
            return None

    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return tuple(pool.map(hash_video, paths))


def _read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows, each with the number of the line that it ends on."""
    with _long_cells():
        reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
        try:
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path} must have the columns {', '.join(columns)}; it lacks {', '.join(missing)}")
            rows = [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: not a valid csv row: {error}") from None
    for number, row in rows:
        if None in row or None in row.values():
            raise InputError(
                f"{path}, line {number}: expected {len(reader.fieldnames or ())} cells, got another number"
            )
        yield number, row


@contextmanager
def _long_cells() -> Iterator[None]:
    # The limit belongs to the whole process.
    with _cell_limit_lock:
        limit = csv.field_size_limit(_MAX_CELL)
        try:
            yield
        finally:
            csv.field_size_limit(limit)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"there is no {path}; give the folder of a dataset that has one") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _write_rows(rows: Sequence[Sequence[object]], columns: Sequence[str], path: Path) -> Path:
    with atomic_path(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    return path


def _parse_sample(path: Path, number: int, row: Mapping[str, str]) -> VideoSample:
    text = row["ref_video_paths"].strip() or "[]"
    try:
        references = json.loads(text)
    except ValueError:
        references = None
    if not isinstance(references, list) or not all(isinstance(item, str) for item in references):
        raise InputError(f"{path}, line {number}: ref_video_paths must be a JSON list of strings, got {text[:60]!r}")
    if not row["kind"].strip():
        raise InputError(f"{path}, line {number}: kind must name a condition, got nothing")
    return VideoSample(
        path=_check_path(path, number, row["video_paths"]),
        caption=row["tar_video_caption"],
        condition=row["kind"].strip(),
        split=row["split"].strip() or "train",
        references=tuple(_check_path(path, number, reference) for reference in references),
        score=_parse_number(path, number, "reference_alignment_score", row["reference_alignment_score"]),
    )


def _parse_number(path: Path, number: int, column: str, text: str) -> float | None:
    if text.strip().lower() in ("", "nan", "none"):
        return None
    if text.strip().lower() in ("true", "false"):
        return float(text.strip().lower() == "true")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}, line {number}: {column} must be a number, got {text!r}")
    return value


def _check_path(path: Path, number: int, text: str) -> str:
    relative = PurePosixPath(text.strip())
    # A list from elsewhere must not reach files outside its folder.
    if not text.strip() or relative.is_absolute() or ".." in relative.parts or "\\" in text or "\0" in text:
        raise InputError(
            f"{path}, line {number}: a path must stay inside the dataset, with forward slashes, got {text!r}"
        )
    return str(relative)


def _parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}")
    return value


def _sample_of(path: Path, number: int, values: Mapping[str, Any]) -> VideoSample:
    known = {item.name: item for item in dataclasses.fields(VideoSample)}
    unknown = sorted(values.keys() - known.keys())
    missing = sorted({"path", "caption", "condition"} - values.keys())
    if unknown or missing:
        raise InputError(
            f"{path}, line {number}: a sample needs path, caption and condition; "
            f"missing: {', '.join(missing) or 'none'}, unknown: {', '.join(unknown) or 'none'}"
        )
    references = values.get("references", [])
    score = values.get("score")
    texts = [value for key, value in values.items() if key not in ("references", "score", "segments")]
    is_list = isinstance(references, list) and all(isinstance(item, str) for item in references)
    is_number = score is None or (
        isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
    )
    if not (is_list and is_number and all(isinstance(text, str) for text in texts)):
        raise InputError(f"{path}, line {number}: references must be a list, score a number and the rest texts")
    return VideoSample(
        **{key: value for key, value in values.items() if key not in ("references", "path", "segments", "sha256")},
        path=_check_path(path, number, values["path"]),
        references=tuple(_check_path(path, number, reference) for reference in references),
        segments=_read_segments(path, number, values.get("segments", [])),
        sha256=None if values.get("sha256") is None else values["sha256"].lower(),
    )


def _read_segments(path: Path, number: int, given: Any) -> tuple[tuple[float, str], ...]:
    match given:
        case [*pairs] if all(_is_segment(pair) for pair in pairs):
            ends = [0.0, *(float(end) for end, _ in pairs)]
            if all(math.isfinite(end) for end in ends) and all(a < b for a, b in pairwise(ends)):
                return tuple((float(end), text) for end, text in pairs)
    raise InputError(
        f"{path}, line {number}: segments must be a list of pairs of the second at which each ends, rising, and its "
        f'caption, such as [[2, "a cat; it jumps"], [4, "a cat; it walks off"]], got {json.dumps(given)[:60]}'
    )


def _is_segment(pair: Any) -> bool:
    match pair:
        case [int() | float() as end, str()]:
            return not isinstance(end, bool)
    return False
