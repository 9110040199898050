"""The files that a generation writes: checked before the slow part, and then all of them or none."""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sememe.errors import InputError, OutputError
from sememe.files import atomic_path, check_writable, writing
from sememe.video.picture import WRITTEN_PICTURES
from sememe.video.writer import WRITTEN_VIDEOS

_USUAL_COMPRESSION = 20  # of a video that moves little; less of others
_MAX_SIDECAR = 10_000_000  # bytes; a record takes some thousands


@dataclass(frozen=True)
class OutputFiles:
    """The video, the JSON beside it that says how it was made, a contact sheet on request, and a system's own files."""

    video: Path
    sidecar: Path
    sheet: Path | None = None
    extra: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def beside(cls, video: Path, sheet: Path | None = None, extra: Mapping[str, Path] | None = None) -> "OutputFiles":
        """Return the files that belong to a video of this name."""
        return cls(video, video.with_suffix(".json"), sheet, extra or {})

    @property
    def paths(self) -> list[Path]:
        """All of them."""
        return [self.video, self.sidecar, *([] if self.sheet is None else [self.sheet]), *self.extra.values()]

    def check(self, inputs: Sequence[Path]) -> None:
        """Raise what would go wrong at the end, before any work is spent.

        Raises:
            OutputError: A name is of no known kind, a folder is missing or cannot be written, or the sidecar would
                replace another JSON file than the one of an earlier video of this name.
            InputError: An output would overwrite one of `inputs`.
        """
        _check_suffix(self.video, WRITTEN_VIDEOS, "the result")
        if self.sheet is not None:
            _check_suffix(self.sheet, (*WRITTEN_PICTURES, *WRITTEN_VIDEOS), "the contact sheet")
        # One file may be spelt in several ways; where its last part is a link, the link alone is replaced.
        if len({path.parent.resolve() / path.name for path in self.paths}) < len(self.paths):
            raise OutputError(f"expected different files to write, got {', '.join(map(str, self.paths))}")
        for path in self.paths:
            check_writable(path)
            _probe(path)
            if any(path.exists() and given.exists() and path.samefile(given) for given in inputs):
                raise InputError(f"{path} would overwrite an input of this generation; choose another output")
        if self.sidecar.exists() and _read_recorded_name(self.sidecar) != self.video.name:
            raise OutputError(
                f"expected {self.sidecar} to be absent or the record of an earlier {self.video.name}, but it is "
                "another file, which would be lost; move it or choose another output"
            )

    def check_space(self, num_bytes: int) -> None:
        """Raise `OutputError` where a video of so many bytes of pixels will hardly fit on the disk."""
        needed = num_bytes // _USUAL_COMPRESSION
        free = shutil.disk_usage(self.video.parent).free
        if free < needed:
            raise OutputError(
                f"expected about {needed / 1e6:.1f} MB free for {self.video}, got {free / 1e6:.1f} MB; free some space "
                "or choose another folder"
            )

    @contextmanager
    def replace_together(self) -> Iterator["OutputFiles"]:
        """Yield temporary files to write to; when the block ends well they become these, the video last.

        Raises:
            OutputError: As `atomic_path` does; then no file is left that was not there before.
        """
        with ExitStack() as stack:
            video, sidecar = (stack.enter_context(atomic_path(path)) for path in (self.video, self.sidecar))
            sheet = None if self.sheet is None else stack.enter_context(atomic_path(self.sheet))
            extra = {name: stack.enter_context(atomic_path(path)) for name, path in self.extra.items()}
            yield OutputFiles(video, sidecar, sheet, extra)


def _check_suffix(path: Path, suffixes: Collection[str], what: str) -> None:
    if path.suffix.lower() not in suffixes:
        raise OutputError(f"expected a name for {what} that ends in {', '.join(suffixes)}, got {path}")


def read_recorded_hashes(sidecar: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that a sidecar tells of, by the name of the file; nothing for any other file."""
    document = _read_document(sidecar)
    parts = [part for part in (document.get("inputs"), document.get("output")) if isinstance(part, dict)]
    groups = [document.get("output"), *(group for part in parts for group in part.values())]
    entries = [each for group in groups for each in (group if isinstance(group, list) else [group])]
    found = [each for each in entries if isinstance(each, dict) and "path" in each]
    return {Path(str(each["path"])).name: each["sha256"] for each in found if isinstance(each.get("sha256"), str)}


def _read_recorded_name(sidecar: Path) -> str | None:
    """Return the name of the video that a sidecar describes, or None for any other file."""
    output = _read_document(sidecar).get("output")
    return Path(str(output["path"])).name if isinstance(output, dict) and "path" in output else None


def _read_document(path: Path) -> dict[str, Any]:
    try:
        is_readable = path.is_file() and path.stat().st_size <= _MAX_SIDECAR
        document = json.loads(path.read_text(encoding="utf-8")) if is_readable else None
    except (OSError, ValueError, RecursionError):
        document = None
    return document if isinstance(document, dict) else {}


def _probe(path: Path) -> None:
    """Make and remove an empty file: permissions do not show that a disk is full or read-only, or a name too long."""
    probe = path.with_name(f".{path.stem}.{'-' * 40}.part{path.suffix}")
    try:
        with writing(path):
            probe.touch()
    finally:
        with suppress(OSError):
            probe.unlink()
