"""Folders of files on a disk or in object storage, such as `s3://bucket/folder`, through fsspec."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import fsspec.core

from sememe.errors import InputError
from sememe.files import write_bytes, writing

# A `Path` makes one slash of two; names of one letter are drives.
_URL = re.compile(r"([a-z][a-z0-9+.-]+):(/+)(.*)")

_LOCAL = ("file", "local")


@dataclass(frozen=True)
class FileRange:
    """Bytes `start` to `stop` of a file."""

    name: str
    start: int
    stop: int


class Storage:
    """The files of one folder.

    Args:
        location: A folder, or a URL with a protocol of fsspec; packages such as s3fs add protocols.

    Raises:
        InputError: The protocol is unknown, or its package is not installed.
    """

    def __init__(self, location: Path | str) -> None:
        url = _URL.fullmatch(str(location))
        try:
            self._location = str(location) if url is None else _restore(*url.groups())
            self._files, self._root = fsspec.core.url_to_fs(self._location)
        except (ImportError, ValueError) as error:
            raise InputError(f"{location} cannot be opened: {error}") from error
        self._folder = Path(self._root) if url is None or url[1] in _LOCAL else None

    def __str__(self) -> str:
        return self._location

    @property
    def url(self) -> str:
        """URL of the folder, independent of the working directory."""
        return str(self._files.unstrip_protocol(self._root))

    def make(self) -> None:
        """Make the folder, if the storage has folders. Raises `OutputError` if it cannot be made."""
        with writing(self):
            self._files.makedirs(self._root, exist_ok=True)

    def list_sizes(self, suffix: str) -> dict[str, int]:
        """Bytes of the files with this ending, by name and sorted, without hidden ones; none if there is no folder."""
        sizes: dict[str, int] = {}
        with suppress(FileNotFoundError, NotADirectoryError):
            if self._folder is None:
                files = self._files.ls(self._root, detail=True, refresh=True)
                sizes = {file["name"].rpartition("/")[2]: file["size"] for file in files}
            else:
                for path in self._folder.iterdir():
                    with suppress(FileNotFoundError):  # another writer's, renamed or removed meanwhile
                        sizes[path.name] = path.stat().st_size
        return {name: sizes[name] for name in sorted(sizes) if name.endswith(suffix) and not name.startswith(".")}

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return bool(self._files.isfile(self._place(name)))

    def measure(self, name: str) -> int:
        """Bytes of a file. Raises `InputError` if it cannot be read."""
        try:
            return int(self._files.size(self._place(name)))
        except OSError as error:
            raise self._unreadable(name, error) from error

    def read(self, ranges: Sequence[FileRange]) -> list[bytes]:
        """Read parts of files, from object storage concurrently; a part beyond the end of its file is shorter.

        Raises:
            InputError: A file does not exist, or cannot be read.
        """
        paths = [self._place(each.name) for each in ranges]
        try:
            found = self._files.cat_ranges(
                paths, [each.start for each in ranges], [each.stop for each in ranges], on_error="raise"
            )
        except OSError as error:
            names = ", ".join(sorted({each.name for each in ranges})[:3])
            raise self._unreadable(names, error) from error
        return list(found)

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically. Raises `OutputError` if it cannot be written."""
        if self._folder is not None:
            write_bytes(self._folder / name, content)
            return
        with writing(f"{self}/{name}"):
            self._files.pipe_file(self._place(name), content)

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        with suppress(FileNotFoundError):
            self._files.rm_file(self._place(name))

    def remove_parts(self) -> None:
        """Remove leftovers of killed writers."""
        for path in () if self._folder is None else self._folder.glob(".*.part.*"):
            path.unlink()

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _unreadable(self, name: str, error: OSError) -> InputError:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
        return InputError(f"{self}/{name} cannot be read: {reason}")


def _restore(kind: str, slashes: str, rest: str) -> str:
    """The URL that a path was made of."""
    slash = "/" if kind in _LOCAL or len(slashes) > 2 else ""
    return f"{kind}://{slash}{rest}".rstrip("/")
