"""Data-loading processes: they ignore stop signals and never outlive the main process."""

import atexit
import multiprocessing.queues
import os
import signal
import traceback
from collections.abc import Callable

from ..utils.processes import kill_workers


# Seconds without a batch from the data-loading processes that end an evaluation.
LOADER_TIMEOUT = 900
# Windows has no SIGHUP.
STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")


def ignore_stop_signals(worker_id: int, before: Callable[[int], None] | None = None) -> None:
    """
    Ignore SIGTERM, SIGINT and SIGHUP in a worker; the main process stops its workers itself. Use as `worker_init_fn`.

    A signal often goes to the whole process group. A worker that dies of it would make the current step fail.

    Args:
        worker_id (`int`): Number of the worker, from the `DataLoader`.
        before (`Callable`, *optional*): Another `worker_init_fn`, called first.
    """
    if before is not None:
        before(worker_id)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
    for name in ("SIGBUS", "SIGSEGV"):
        # PyTorch's handlers would write a line. The main process reports these, too.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    for name in STOP_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _end_worker(error: Exception, batch: object) -> None:
    # The thread that hands over batches would only print the error, and the main process would wait for the batch.
    if "</torch_" in str(error) and hasattr(signal, "SIGBUS"):
        # It could not write a file of shared memory. So ends a process that cannot fill one.
        signal.raise_signal(signal.SIGBUS)
    traceback.print_exception(error)
    os._exit(1)


# After an exception, workers may still be running. Python would end them with SIGTERM and wait forever.
atexit.register(kill_workers)
