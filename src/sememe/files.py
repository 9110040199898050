"""Writing a file or a folder so that it is whole or not there at all, and hashing files."""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sememe.errors import InputError, OutputError, SememeError


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn an `OSError` within the block into an `OutputError` that says why `path` could not be written."""
    try:
        yield
    except SememeError:
        raise
    except OSError as error:
        reason = error.strerror or error
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            reason = "the disk is full; free some space or choose another folder"
        elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            reason = "no permission; choose another folder"
        elif error.errno == errno.ENAMETOOLONG:
            reason = "the name is too long; choose a shorter one"
        raise OutputError(f"cannot write {path}: {reason}") from error


def make_folder(folder: Path) -> None:
    """Make a folder and those that it is in. Raises `OutputError` if it cannot be made."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; what was written there becomes `path` at once when the block ends well.

    The temporary file is a hidden one in the same folder with the same suffix. It is flushed to the disk and then
    renamed over `path`, so that a reader sees the old file or the new one and never half of one. If the block ends by
    any exception, Ctrl-C included, the temporary file is removed and an older `path` stays as it was.

    Raises:
        OutputError: The folder does not exist or cannot be written, `path` is a folder, or the disk is full. An
            `OSError` raised inside the block comes out as an `OutputError` too.
    """
    path = Path(path)
    check_writable(path)
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        with writing(path):
            part.touch(exist_ok=False)
            mode = part.stat().st_mode & 0o777
            yield part
            part.chmod(mode)  # safetensors puts another file there, which only its owner may read
            flush(part)
            part.replace(path)
            flush(path.parent)
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to, which becomes `folder` when the block ends well; an older one is replaced.

    It is flushed to the disk and then renamed. If the block ends by an exception, what was written is removed and an
    older folder stays. A process that is killed leaves at most a hidden folder `.<name>.writing-<process>` or
    `.<name>.replaced-<process>` beside it.

    Raises:
        OutputError: The folder cannot be written. An `OSError` raised inside the block comes out as one too.
    """
    folder = folder.absolute()
    temporary = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    try:
        with writing(folder):
            temporary.mkdir(parents=True)
            yield temporary
            share_files(temporary)
            for path in (*temporary.rglob("*"), temporary):
                flush(path)
            if folder.exists():
                folder.rename(replaced)
            temporary.rename(folder)
            flush(folder.parent)
    finally:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def share_files(folder: Path) -> None:
    """Give the files in a folder the mode of new ones there: safetensors writes them for their owner alone."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other processes from locking it until the block ends or this process does.

    Raises:
        OutputError: Another process has locked it, or it cannot be written.
    """
    lock = FileLock(folder / ".lock")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise OutputError(
                f"expected {folder} to be free, but another process is writing to it; wait for its end, or choose "
                "another folder"
            ) from error
    try:
        yield
    finally:
        # What failed before it wrote anything leaves no folder. The file goes while it is locked: nobody waits for it.
        with suppress(OSError):
            (folder / ".lock").unlink()
        lock.release()
        with suppress(OSError):
            folder.rmdir()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically. Raises `OutputError` as `atomic_path` does."""
    with atomic_path(path) as part:
        part.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically. Raises `OutputError` as `atomic_path` does."""
    write_bytes(path, text.encode())


def check_writable(path: str | Path) -> None:
    """Raise `OutputError` if `path` cannot become a file, before any work is spent on what should go there."""
    path = Path(path)
    folder = path.parent
    with writing(path):
        if path.is_dir():
            raise OutputError(f"expected the name of a file to write, got the folder {path}; add a file name")
        if not folder.exists():
            raise OutputError(f"cannot write {path}: the folder {folder} does not exist; create it first")
        if not folder.is_dir():
            raise OutputError(f"cannot write {path}: {folder} is a file, not a folder; choose another place")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"cannot write {path}: no permission to write in {folder}; choose another folder")


def flush(path: Path) -> None:
    """Have the system put a file, or the entries of a folder, on the disk. Raises `OSError` if it cannot."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some file systems cannot flush folders; a rename is still atomic there.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)
