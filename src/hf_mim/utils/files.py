"""Files and folders that appear whole or not at all, also when the process or the machine stops half-way."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_file(path: Path | str) -> Iterator[Path]:
    """A temporary name in the folder of `path`, for a file that takes the place of `path` when the block ends.

    The file is on the disk before it is renamed. On an exception it is removed, and what was at `path` stays. The
    temporary name keeps the suffix; the folder is created if need be.

    Raises:
        FileNotFoundError: when the block has not written the file.
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
    """A new, empty folder `.{name}.new` beside `path`, which takes the place of `path` when the block ends.

    All files in it are on the disk before it is renamed. On an exception it is removed, and what was at `path` stays.
    A folder cannot be replaced in one step: the old one is called `.{name}.old` for a moment, and is removed last.
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
    """Bring a folder with all that is in it to the disk."""
    for folder, _, files in os.walk(path):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if os.name == "nt":  # neither a folder nor a file that is only read can be synchronised there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
