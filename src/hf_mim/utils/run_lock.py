"""One run per output folder: a lock that ends with its process, whatever ends the process."""

import datetime
import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK_FILE = ".run.lock"
IN_USE = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def run_lock(folder: str | Path) -> Iterator[None]:
    """
    Reserve a folder for the block, and make sure that files can be written there.

    The folder is created. If the block leaves it empty, it is removed again, with the parents that were created. The
    lock is a record lock of the process: data-loading processes do not inherit it, and the system removes it when the
    process ends. Where the file system has no locks, a warning says so.

    Args:
        folder (`str` or `Path`): The folder.

    Raises:
        ValueError: If another run has reserved it. The message names its process.
        OSError: If files cannot be written there.
    """
    folder = Path(folder)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file")
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(folder / LOCK_FILE)
    except OSError as error:
        _remove_empty(created)
        raise OSError(
            f"cannot write to output_dir {folder}: {error.strerror or error}. Choose another --output_dir"
        ) from error
    try:
        yield
    finally:
        (folder / LOCK_FILE).unlink(missing_ok=True)
        os.close(file)
        _remove_empty(created)


def _locked(path: Path) -> int:
    """Return the descriptor of the lock file, locked, with the facts of this process in it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            facts = os.read(file, 4096).decode(errors="replace")
            if error.errno not in NO_LOCKS:
                os.close(file)
            if error.errno in IN_USE:
                raise ValueError(_in_use(path.parent, facts)) from None
            if error.errno not in NO_LOCKS:
                raise
            logger.warning(f"{path.parent} is on a file system without locks: start no second run there")
        # Another run may have removed the file between the two calls.
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            break
        os.close(file)
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    facts = json.dumps({"process": os.getpid(), "host": socket.gethostname(), "started": now}) + "\n"
    try:
        os.truncate(file, 0)
        os.write(file, facts.encode())
    except OSError:
        path.unlink()
        os.close(file)
        raise
    return file


def _in_use(folder: Path, facts: str) -> str:
    try:
        owner = json.loads(facts)
        who = f"process {owner['process']} on {owner['host']}, started {owner['started']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return (
        f"another run writes to output_dir {folder} ({who}): wait for its end, or stop it, or choose another "
        "--output_dir"
    )


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
