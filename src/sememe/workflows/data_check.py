"""What is wrong with a dataset of videos, found before anything is encoded or trained."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sememe.data.manifest import VideoSample, hash_videos, read_samples
from sememe.errors import VideoError
from sememe.events import ProgressHandler, StepCounter, ignore_progress
from sememe.video import SheetRow, contact_sheet, read_clip, write_image
from sememe.video.picture import check_picture_output
from sememe.video.source import survey_video

_SHEET_FRAMES, _SHEET_SIZE = 8, 128
# Above this, one rate for all videos changes what is seen.
_MOST_SPREAD = 1.5


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about some of the videos.

    Attributes:
        is_error: Whether these videos, or their conditions, cannot be trained on.
        message: What was found and what to do, in one line.
        examples: A few of them.
    """

    is_error: bool
    message: str
    examples: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What `check_data` found.

    Attributes:
        num_videos: Videos in the list.
        conditions: Number of videos of each condition.
        splits: Number of videos of each split.
        seconds: Shortest, median and longest duration of the videos that can be read; empty for none.
        findings: What is wrong, errors first.
    """

    num_videos: int
    conditions: Mapping[str, int]
    splits: Mapping[str, int]
    seconds: Sequence[float] = ()
    findings: Sequence[Finding] = field(default_factory=tuple)

    @property
    def is_good(self) -> bool:
        """Whether nothing is an error."""
        return not any(finding.is_error for finding in self.findings)


def check_data(folder: Path, sheet: Path | None = None, on_progress: ProgressHandler = ignore_progress) -> DataReport:
    """Check a dataset's folder: each video is hashed, surveyed, and its first frame decoded.

    Args:
        folder: Folder with a manifest or VAP-Data's csv.
        sheet: Picture to write, with the first video of each condition.
        on_progress: Called with each video.

    Raises:
        InputError: There is no list of videos, or it cannot be read.
        OutputError: The picture cannot be written.
    """
    if sheet is not None:
        check_picture_output(sheet)
    samples = read_samples(folder)
    hashes = hash_videos(folder, [sample.path for sample in samples])
    counter = StepCounter("checking videos", len(samples), on_progress)
    bad: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for sample, digest in zip(samples, hashes, strict=True):
        try:
            seconds[sample.path] = _measure(folder, sample, digest)
        except VideoError as error:
            bad[sample.path] = str(error)
        counter.advance()
    rows = [] if sheet is None else _read_rows(folder, samples, bad)
    good = [sample for sample in samples if sample.path not in bad]
    durations = [length for path, length in seconds.items() if path not in bad]
    what = f"of {len(samples)} videos cannot be used; repair them, or take them out of the list"
    findings = _note(list(bad.values()), what, is_error=True)
    findings += [*_find_lonely(good), *_find_doubles(samples, hashes)]
    findings += [*_find_captions(good), *_find_references(samples), *_find_speeds(durations)]
    if sheet is not None and rows:
        write_image(contact_sheet(rows, columns=_SHEET_FRAMES, cell_height=_SHEET_SIZE), sheet)
    return DataReport(
        num_videos=len(samples),
        conditions=dict(Counter(sample.condition for sample in samples)),
        splits=dict(Counter(sample.split for sample in samples)),
        seconds=[min(durations), float(np.median(durations)), max(durations)] if durations else [],
        findings=sorted(findings, key=lambda each: not each.is_error),
    )


def _measure(folder: Path, sample: VideoSample, digest: str | None) -> float:
    path = folder / sample.path
    survey = survey_video(path)
    if sample.sha256 is not None and digest != sample.sha256:
        raise VideoError(f"{path} is not the file that the manifest describes: its SHA-256 differs")
    read_clip(path, num_frames=1, sampling="first", max_size=_SHEET_SIZE, survey=survey)
    return len(survey.times) / survey.fps


def _note(examples: Sequence[str], message: str, *, is_error: bool = False) -> list[Finding]:
    """Return a finding that begins with the number of what it is about; none where that is nothing."""
    found = Finding(is_error=is_error, message=f"{len(examples)} {message}", examples=examples[:3])
    return [found] if examples else []


def _find_lonely(samples: Sequence[VideoSample]) -> list[Finding]:
    scenes: dict[str, set[str]] = {}
    for sample in samples:
        if sample.split == "train":
            scenes.setdefault(sample.condition, set()).add(sample.scene or sample.path)
    lonely = sorted(condition for condition, found in scenes.items() if len(found) < 2)
    return _note(lonely, "conditions have one scene only; an expert leaves them out, because a pair needs two")


def _find_doubles(samples: Sequence[VideoSample], hashes: Sequence[str | None]) -> list[Finding]:
    conditions: dict[str, set[str]] = {}
    paths: dict[str, str] = {}
    for sample, digest in zip(samples, hashes, strict=True):
        if digest is not None:
            conditions.setdefault(digest, set()).add(sample.condition)
            paths.setdefault(digest, sample.path)
    doubled = [paths[digest] for digest, found in conditions.items() if len(found) > 1]
    return _note(doubled, "videos are listed under several conditions; a reference then shows more than one")


def _find_captions(samples: Sequence[VideoSample]) -> list[Finding]:
    empty = [sample.path for sample in samples if not sample.caption.strip()]
    naming = [sample.path for sample in samples if _normalise(sample.condition) in _normalise(sample.caption)]
    return [
        *_note(empty, "captions are empty; such videos are learned without a text"),
        *_note(
            naming,
            "captions name their condition, which makes the reference superfluous; give neutral ones in manifest.jsonl",
        ),
    ]


def _normalise(text: str) -> str:
    """The words alone, with a space before and after each."""
    words = re.findall(r"[^\W_]+", text.lower())
    return f" {' '.join(words)} "


def _find_references(samples: Sequence[VideoSample]) -> list[Finding]:
    known = {(sample.path, sample.condition) for sample in samples}
    listed = {(path, sample.condition) for sample in samples for path in sample.references}
    lost = sorted({path for path, _ in listed - known})
    return _note(lost, "listed references are not in the list, or of another condition; they are never shown")


def _find_speeds(durations: Sequence[float]) -> list[Finding]:
    if not durations or max(durations) <= _MOST_SPREAD * min(durations):
        return []
    message = (
        f"videos last from {min(durations):.1f} to {max(durations):.1f} s: with clips.sampling=even they play at "
        "different speeds; clips.sampling=fps keeps the speed"
    )
    return [Finding(is_error=False, message=message)]


def _read_rows(folder: Path, samples: Sequence[VideoSample], bad: dict[str, str]) -> list[SheetRow]:
    """Read the first good video of each condition; those that break on the way are added to the bad ones."""
    rows: dict[str, SheetRow] = {}
    for sample in samples:
        if sample.path in bad or sample.condition in rows:
            continue
        try:
            clip = read_clip(folder / sample.path, num_frames=_SHEET_FRAMES, max_size=2 * _SHEET_SIZE)
        except VideoError as error:
            bad[sample.path] = str(error)
            continue
        rows[sample.condition] = SheetRow(f"{sample.condition}: {sample.caption or 'no caption'}", clip)
    return [rows[condition] for condition in sorted(rows)]
