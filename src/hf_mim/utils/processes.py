"""Data-loading processes: end them in whatever state they are, and say why one has died."""

import multiprocessing
import re
import signal
import threading


WORKER_ADVICE = (
    "The usual cause is too little memory: use fewer data-loading processes (--dataloader_num_workers, --num_workers) "
    "or smaller batches"
)


def kill_workers() -> None:
    """
    Kill the daemonic child processes at once.

    They ignore SIGTERM, with which Python and PyTorch end them, and stopped ones do not even receive it: both would
    wait for each of them.
    """
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    if not workers:
        return
    # PyTorch's handler would raise an exception about their deaths.
    reports = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if reports else None
    for process in workers:
        process.kill()
    for process in workers:
        process.join(timeout=1)
    if reports:
        signal.signal(signal.SIGCHLD, before)


def dead_worker(text: str) -> str:
    """Return what happened to a data-loading process from PyTorch's message about it."""
    waited = re.search(r"timed out after ([\d.]+) seconds", text)
    if waited:
        return f"no images came from the data-loading processes for {float(waited[1]):g} seconds"
    for sign, meaning in (
        ("Killed", "was killed (SIGKILL), as the system does when memory runs out"),
        ("Segmentation fault", "crashed (segmentation fault), which a damaged image can cause"),
        ("Bus error", "ran out of shared memory (bus error, /dev/shm)"),
    ):
        if sign in text:
            return f"a data-loading process {meaning}"
    return "a data-loading process ended unexpectedly"
