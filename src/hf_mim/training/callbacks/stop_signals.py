"""Stop a run between two steps when the system or the user asks for it."""

import signal
import threading
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback


# EX_TEMPFAIL of sysexits.h: not finished, can be started again.
EXIT_INTERRUPTED = 75


class StopSignals(TrainerCallback):
    """
    Ends training with a checkpoint after the current step on SIGTERM or SIGINT (Ctrl-C).

    It is a context manager that records these signals while it is active, and a callback that reacts to them. A second
    SIGINT raises `KeyboardInterrupt` immediately. A signal after the last step has its usual effect when the context
    exits. Only the main thread can handle signals. In other threads, nothing changes.

    Args:
        timeout (`timedelta`, *optional*): How long a process waits for the others to agree.

    Attributes:
        stopping (`bool`): Whether the processes have agreed to stop.
    """

    def __init__(self, timeout: timedelta | None = None):
        self.received: int | None = None
        # Known to all processes, unlike `received`.
        self.stopping = False
        self._timeout = timeout
        self._previous: dict[int, Any] = {}
        self._group: dist.ProcessGroup | None = None

    def __enter__(self):
        self.received, self.stopping = None, False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # On the CPU: a collective on the GPU would synchronize in every step.
            self._group = dist.new_group(backend="gloo", timeout=self._timeout)
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None
        if self.received and not self.stopping and exception == (None, None, None):
            signal.raise_signal(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def on_step_end(self, args, state, control, **kwargs):
        self.stopping = self._agreed()
        if self.stopping:
            control.should_log = control.should_save = control.should_training_stop = True
            # The system may leave only seconds.
            control.should_evaluate = False

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopping:
            control.should_log = control.should_save = control.should_evaluate = False

    def _agreed(self) -> bool:
        """Return whether any process received a signal."""
        if self._group is None:
            return self.received is not None
        asked = torch.tensor([self.received or 0])
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._group)
        self.received = int(asked) or None
        return self.received is not None
