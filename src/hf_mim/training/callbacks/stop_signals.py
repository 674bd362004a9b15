"""Ending a run between two steps, when the system or the user asks for it."""

import signal
import threading
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from transformers import TrainerCallback


# EX_TEMPFAIL of sysexits.h: not finished, and worth starting again.
EXIT_INTERRUPTED = 75


class StopSignals(TrainerCallback):
    """
    While it is entered, SIGTERM and SIGINT (Ctrl-C) are noted instead of ending the process; as a callback it ends the
    training after the step, with a checkpoint.

    A second SIGINT raises `KeyboardInterrupt` at once; a signal after the last step takes its usual effect at the end.
    Only the main thread can listen to signals; in another one nothing changes.

    Args:
        timeout (`timedelta`, *optional*): How long one process waits for the others to agree.

    Attributes:
        stopping (`bool`): Whether the processes have agreed to stop.
    """

    def __init__(self, timeout: timedelta | None = None):
        self.received: int | None = None
        # What all processes know: `received` of one of them may be news to the others.
        self.stopping = False
        self._timeout = timeout
        self._previous = {}
        self._group = None

    def __enter__(self):
        self.received, self.stopping = None, False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # On the host: a collective on the GPU would make every step wait for it.
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

    def _note(self, number: int, frame: FrameType | None):
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def on_step_end(self, args, state, control, **kwargs):
        self.stopping = self._agreed()
        if self.stopping:
            control.should_log = control.should_save = control.should_training_stop = True
            # There may be only seconds left.
            control.should_evaluate = False

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopping:
            control.should_log = control.should_save = control.should_evaluate = False

    def _agreed(self) -> bool:
        """Whether any process was asked to stop."""
        if self._group is None:
            return self.received is not None
        asked = torch.tensor([self.received or 0])
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._group)
        self.received = int(asked) or None
        return self.received is not None
