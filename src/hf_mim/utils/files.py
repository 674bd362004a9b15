"""Write files and folders atomically: whole or not at all, even if the process or the machine stops midway."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_file(path: Path | str) -> Iterator[Path]:
    """
    Yield a temporary path beside `path`; the file written there replaces `path` when the block ends.

    The file is flushed to disk before it is renamed. On an exception it is removed and `path` stays as it was. The
    temporary name keeps the suffix; the folder is created if needed.

    Args:
        path (`str` or `Path`): File to write.

    Raises:
        FileNotFoundError: If the block has not written the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def replaced_folder(path: Path | str) -> Iterator[Path]:
    """
    Yield a new, empty folder `.{name}.new` beside `path`, which replaces `path` when the block ends.

    All its files are flushed to disk before it is renamed. On an exception it is removed and `path` stays as it was. A
    folder cannot be replaced in one step: the old one is named `.{name}.old` for a moment and is removed last.

    Args:
        path (`str` or `Path`): Folder to write.
    """
    path = Path(path)
    temporary, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_folder(temporary)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Flush a folder with all its contents to disk."""
    for folder, _, files in os.walk(path):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    if os.name == "nt":  # Windows can sync neither folders nor files opened for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
