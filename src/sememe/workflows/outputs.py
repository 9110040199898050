"""The files that a generation writes: checked before the slow part, and then all of them or none."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sememe.errors import InputError, OutputError
from sememe.files import atomic_path, check_writable, describe_write_error

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".gif")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class OutputFiles:
    """The video, the JSON beside it that says how it was made, and a contact sheet on request."""

    video: Path
    sidecar: Path
    sheet: Path | None = None

    @classmethod
    def beside(cls, video: Path, sheet: Path | None = None) -> "OutputFiles":
        """The files that belong to a video of this name."""
        return cls(video, video.with_suffix(".json"), sheet)

    def check(self, inputs: Sequence[Path]) -> None:
        """Raises what would go wrong at the end, before any work is spent.

        Raises:
            OutputError: a name is of no known kind, or a folder is missing or cannot be written.
            InputError: an output would overwrite one of `inputs`.
        """
        _check_suffix(self.video, VIDEO_SUFFIXES, "the result")
        if self.sheet is not None:
            _check_suffix(self.sheet, PICTURE_SUFFIXES, "the contact sheet")
        for path in (self.video, self.sidecar, self.sheet):
            if path is None:
                continue
            check_writable(path)
            _probe(path)
            if any(path.exists() and given.exists() and path.samefile(given) for given in inputs):
                raise InputError(f"{path} would overwrite an input of this generation; choose another output")

    @contextmanager
    def replace_together(self) -> Iterator["OutputFiles"]:
        """Yields temporary files to write to; when the block ends well they become these, the video last.

        Raises:
            OutputError: as `atomic_path` does; then no file is left that was not there before.
        """
        with ExitStack() as stack:
            video, sidecar = (stack.enter_context(atomic_path(path)) for path in (self.video, self.sidecar))
            sheet = None if self.sheet is None else stack.enter_context(atomic_path(self.sheet))
            yield OutputFiles(video, sidecar, sheet)


def _check_suffix(path: Path, suffixes: Sequence[str], what: str) -> None:
    if path.suffix.lower() not in suffixes:
        raise OutputError(f"expected a name for {what} that ends in {', '.join(suffixes)}, got {path}")


def _probe(path: Path) -> None:
    """Makes and removes an empty file: permissions alone tell nothing of full or read-only disks and of long names."""
    probe = path.with_name(f".{path.stem}.{'-' * 40}.part{path.suffix}")
    try:
        probe.touch()
    except OSError as error:
        raise OutputError(describe_write_error(path, error)) from error
    finally:
        with suppress(OSError):
            probe.unlink()
