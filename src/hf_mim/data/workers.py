"""What the processes that load data have in common."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable


def ignore_stop_signals(worker_id: int, before: Callable[[int], None] | None = None) -> None:
    """Leave SIGTERM and SIGINT to the main process, which tells its workers when it ends (a `worker_init_fn`).

    A signal often goes to the whole group of processes; a worker that died of it would take the step with it.

    Args:
        worker_id: number of the worker, given by the `DataLoader`.
        before: another `worker_init_fn`, called first.
    """
    if before is not None:
        before(worker_id)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    # After an exception some may still be there. Python ends its processes with SIGTERM, and would wait for ever.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
