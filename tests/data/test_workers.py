"""A data-loading process that cannot hand over its batches ends, so that nobody waits for them."""

import os
import resource
import signal
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from hf_mim.data.workers import STOP_SIGNALS, ignore_stop_signals
from hf_mim.utils.console import mistake
from hf_mim.utils.processes import kill_workers


class Large(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(100_000)


class Unsendable(Large):
    def __getitem__(self, index: int):
        return lambda: index


class Signals(Large):
    def __getitem__(self, index: int) -> list[bool]:
        return [signal.getsignal(getattr(signal, name)) == signal.SIG_IGN for name in STOP_SIGNALS]


class Crash(Large):
    def __getitem__(self, index: int):
        signal.raise_signal(signal.SIGSEGV)


def small_shared_memory(worker_id: int):
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def first(dataset, before=None):
    loader = DataLoader(
        dataset,
        num_workers=1,
        collate_fn=list,
        worker_init_fn=partial(ignore_stop_signals, before=before),
        generator=torch.Generator(),
        timeout=20,
    )
    return next(iter(loader))


@pytest.mark.parametrize(
    ("dataset", "before", "message"),
    [
        (Large(), small_shared_memory, "a data-loading process ran out of shared memory (bus error, /dev/shm)"),
        (Crash(), None, "a data-loading process crashed (segmentation fault), which a damaged image can cause"),
        (Unsendable(), None, "a data-loading process ended unexpectedly"),
    ],
)
def test_a_process_that_fails(dataset, before, message):
    with pytest.raises(RuntimeError) as error:
        first(dataset, before)
    assert message in (mistake(error.value) or "")


def test_signals_to_the_group_are_for_the_main_process():
    assert first(Signals()) == [[True] * len(STOP_SIGNALS)]


def test_stopped_processes_are_killed():
    loader = DataLoader(Large(), num_workers=2, worker_init_fn=ignore_stop_signals, generator=torch.Generator())
    iterator = iter(loader)
    next(iterator)
    workers = iterator._workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)
    before = signal.getsignal(signal.SIGCHLD)
    kill_workers()
    assert not any(worker.is_alive() for worker in workers) and signal.getsignal(signal.SIGCHLD) == before
