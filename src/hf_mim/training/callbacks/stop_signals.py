"""Stop a run between two steps when the system or the user asks for it."""

import os
import random
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import TrainerCallback

from ...data.workers import STOP_SIGNALS
from ...utils.processes import kill_workers


# EX_TEMPFAIL of sysexits.h: not finished, can be started again.
EXIT_INTERRUPTED = 75
# Seconds between a signal and the end of a block that may be left: a batch that is nearly there still comes.
PATIENCE = 5.0
# Seconds that the main thread has after a second Ctrl-C to leave a kernel or a collective.
LAST_CHANCE = 1.5


class WaitEnded(Exception):
    """Raised in a block of [`StopSignals.may_end`]: a signal came, or the data did not."""


class StopSignals(TrainerCallback):
    """
    Ends training with a checkpoint after the current step on SIGTERM, SIGINT (Ctrl-C) or SIGHUP (a closed terminal).

    It is a context manager that records these signals while it is active, and a callback that reacts to them. A thread
    answers at once, even if the main thread is in a long kernel. A second SIGINT raises `KeyboardInterrupt`
    immediately; if the main thread cannot react within `LAST_CHANCE` seconds, the process exits with code 130. A
    signal after the last step has its usual effect when the context exits. Only the main thread can handle signals. In
    other threads, nothing changes.

    Args:
        timeout (`timedelta`, *optional*): How long a process waits for the others to agree.
        limit (`float`, defaults to 0): Seconds that the data may take to come; 0 for no limit.
        answers (`bool`, defaults to `True`): Whether this process writes its answer to a signal on stderr.

    Attributes:
        stopping (`bool`): Whether the processes have agreed to stop.
    """

    def __init__(self, timeout: timedelta | None = None, limit: float = 0.0, answers: bool = True):
        self.received: int | None = None
        # Known to all processes, unlike `received`.
        self.stopping = False
        self._timeout, self._limit, self._answers = timeout, limit, answers
        self._previous: dict[int, Any] = {}
        self._group: dist.ProcessGroup | None = None
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._random: tuple | None = None
        self._reset()

    def _reset(self) -> None:
        self.received, self.stopping, self._interrupts = None, False, 0
        self._received_at = 0.0
        # When the main thread began the block of `may_end` that it is in, and whether the limit applies to it.
        self._since: float | None = None
        self._limited = False
        self._stepped = False
        self._ended = False

    def __enter__(self):
        self._reset()
        if threading.current_thread() is threading.main_thread():
            for number in [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]:
                # A command under nohup goes on when its terminal is closed.
                if number in (signal.SIGTERM, signal.SIGINT) or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
            self._sockets = socket.socketpair()
            for end in self._sockets:
                end.setblocking(False)
            self._wakeup_before = signal.set_wakeup_fd(self._sockets[1].fileno(), warn_on_full_buffer=False)
            _watched.add(self._sockets[1].fileno())
            self._watcher = threading.Thread(target=self._watch, name="stop signals", daemon=True)
            self._watcher.start()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # On the CPU: a collective on the GPU would synchronize in every step.
            self._group = dist.new_group(backend="gloo", timeout=self._timeout)
        return self

    def __exit__(self, *exception):
        if self._sockets is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            _watched.discard(self._sockets[1].fileno())
            # Closing alone would not end the watcher: data-loading processes have copies.
            self._sockets[1].shutdown(socket.SHUT_RDWR)
            self._watcher.join()
            for end in self._sockets:
                end.close()
            self._sockets = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None
        if self.received and not self.stopping and exception == (None, None, None):
            signal.raise_signal(self.received)

    # In the main thread

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._ended:
            # Sent by the watcher, which may be late.
            self._ended = False
            if self._since is not None:
                raise WaitEnded
            return
        self.received, self._received_at = number, time.monotonic()
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                kill_workers()
                raise KeyboardInterrupt

    @contextmanager
    def may_end(self, limited: bool = False) -> Iterator[None]:
        """
        Let this block, which changes nothing that is saved, be left by `WaitEnded` soon after a signal.

        With several processes, a signal does not end it, because the others would wait for this one.

        Args:
            limited (`bool`, defaults to `False`): Whether it also ends after `limit` seconds. Before the first step
                there is no limit, because a stream that is resumed is read again.
        """
        if self._sockets is None or self._since is not None:
            yield
            return
        self._limited = limited and self._stepped and self._limit > 0
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def restore_random_state(self) -> None:
        """If no step has begun in this epoch, undo what its beginning drew from the global random generators."""
        if self._random is not None:
            random.setstate(self._random[0])
            np.random.set_state(self._random[1])
            torch.set_rng_state(self._random[2])

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._random = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def on_step_begin(self, args, state, control, **kwargs):
        self._random, self._stepped = None, True

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

    # In the watching thread

    def _watch(self) -> None:
        assert self._sockets is not None
        interrupts, last_chance = 0, None
        while True:
            if select.select([self._sockets[0]], [], [], 0.25)[0]:
                numbers = self._sockets[0].recv(64)
                if not numbers:
                    return
                for number in numbers:
                    if number in self._previous and not self._ended:
                        interrupts += number == signal.SIGINT
                        self._answer(number, interrupts)
                if interrupts > 1 and last_chance is None:
                    last_chance = time.monotonic() + LAST_CHANCE
            if last_chance is not None and time.monotonic() > last_chance:
                kill_workers()
                _write("hf-mim: interrupted")
                os._exit(130)
            self._end_wait()

    def _answer(self, number: int, interrupts: int) -> None:
        if not self._answers:
            return
        if number == signal.SIGINT:
            line = "finishing this step and saving; press Ctrl-C again to stop now"
            _write(line if interrupts == 1 else "stopping now")
        else:
            _write(f"{signal.Signals(number).name}: finishing this step and saving")

    def _end_wait(self) -> None:
        """End the block of `may_end` that the main thread is in, if it is time."""
        since, now = self._since, time.monotonic()
        if since is None or self._ended or not hasattr(signal, "pthread_kill"):  # Windows has none
            return
        signaled = self.received is not None and self._group is None
        late = signaled and now - max(since, self._received_at) > PATIENCE
        # PyTorch's own timeout comes first. It does not see a process that stops while it hands over a batch.
        if late or (self._limited and now - since > self._limit + PATIENCE):
            self._ended = True
            # It also ends a system call that the main thread is in.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


_watched: set[int] = set()


def _forget_watchers() -> None:
    # A signal to a new process, until it ignores it, is none to this one.
    if _watched:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_watchers)


def _write(line: str) -> None:
    """Write a line to stderr from any thread. If the terminal is gone, leave stdout and stderr to nobody."""
    try:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2, f"\n{line}\n".encode())
    except OSError:
        # Otherwise the next print of the run would end it before it has saved.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        os.close(nowhere)
