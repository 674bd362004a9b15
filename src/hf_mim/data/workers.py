"""Data-loading processes: they ignore stop signals and never outlive the main process."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable


def ignore_stop_signals(worker_id: int, before: Callable[[int], None] | None = None) -> None:
    """
    Ignore SIGTERM and SIGINT in a worker; the main process stops its workers itself. Use as `worker_init_fn`.

    A signal often goes to the whole process group. A worker that dies of it would make the current step fail.

    Args:
        worker_id (`int`): Number of the worker, from the `DataLoader`.
        before (`Callable`, *optional*): Another `worker_init_fn`, called first.
    """
    if before is not None:
        before(worker_id)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    # After an exception, workers may still be running. Python ends them with SIGTERM, which they ignore, and would
    # wait forever.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
