"""Writing a folder so that it is whole or not there at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sememe.errors import OutputError, SememeError
from sememe.files import describe_write_error


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to, which becomes `folder` when the block ends well; an older one is replaced.

    If the block ends by an exception, what was written is removed and an older folder stays.

    Raises:
        OutputError: it cannot be written. An `OSError` raised inside the block comes out as an `OutputError` too.
    """
    temporary = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
    except SememeError:
        raise
    except OSError as error:
        raise OutputError(describe_write_error(folder, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
