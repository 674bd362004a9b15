"""Write files and folders atomically: whole or not at all, even if the process or the machine stops midway."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


# Reasons for which the machine, not the program, refuses to write.
WRITE_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS")
    if hasattr(errno, name)  # Windows has no quotas
}
# How torch.save reports a full disk.
TORCH_WRITES = ("PytorchStreamWriter", "inline_container", "iostream error", "unexpected pos")


def failed_write(error: BaseException) -> str | None:
    """
    Return the reason if an exception means that a file could not be written; otherwise None.

    safetensors, PyTorch and Arrow have their own exceptions for a full disk, which say nothing about the file.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None and error.errno in WRITE_ERRORS:
        return os.strerror(error.errno)
    number = re.search(r"(?:os error |errno )(\d+)", text)
    if number and int(number[1]) in WRITE_ERRORS and type(error).__module__.startswith(("safetensors", "pyarrow")):
        return os.strerror(int(number[1]))
    if isinstance(error, SafetensorError) and "serializ" in text and "I/O error" in text:
        return text
    if isinstance(error, RuntimeError) and any(sign in text for sign in TORCH_WRITES):
        return "the file was cut short (is the disk full?)"
    return None


def _write_error(path: Path, error: BaseException) -> OSError | None:
    """Return an exception that names `path` if `error` is a failed write; otherwise None."""
    reason = failed_write(error)
    return None if reason is None else OSError(f"cannot write {path}: {reason}")


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
        OSError: If it cannot be written, whatever the library that writes it raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        named = _write_error(path, error)
        if named is None:
            raise
        raise named from error
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
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            os.replace(old, path)
        named = _write_error(path, error)
        if named is None:
            raise
        raise named from error
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


def shown_folder(folder: Path | str) -> str:
    """Return a path that loads a folder, for code in cards: relative to the working folder if it lies below it."""
    relative = os.path.relpath(folder)
    return os.path.abspath(folder) if relative.startswith("..") else relative
