"""How many images per second a run trains on, and how long it waits for them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator


class Throughput:
    """
    The clock of the training loop. It starts with the first batch that is asked for and stands still within `paused`.

    It never waits for a GPU. A reading is true all the same where the loop has just waited for one, as it has when the
    loss of a log is at hand.

    Args:
        clock (`Callable`, defaults to `time.perf_counter`): Gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self.restart()

    def restart(self):
        """Forget everything, at the beginning of a training."""
        self._since: float | None = None
        self._images = 0
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the code that waits for the next batches."""
        start = self._clock()
        if self._since is None:
            self._since = start
        yield
        self._waited += self._clock() - start

    def count(self, images: int):
        """Add `images` that are trained on."""
        self._images += images

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training: evaluating and saving."""
        start = self._clock()
        yield
        if self._since is not None:
            self._since += self._clock() - start

    def read(self) -> tuple[int, float, float]:
        """Images, seconds, and seconds of waiting among them since the last reading; the next one counts from here."""
        now = self._clock()
        seconds = 0.0 if self._since is None else now - self._since
        reading = self._images, seconds, self._waited
        self._since = None if self._since is None else now
        self._images, self._waited = 0, 0.0
        return reading

    def collect(self, accelerator: Accelerator) -> dict[str, float]:
        """
        `images_per_second` of all processes together, all views of an image counting as one, and `data_wait`, the mean
        share in [0, 1] of their time that passed in waiting for batches, since the last call; all must call this.
        """
        images, seconds, waited = self.read()
        if not images:
            return {}
        reading = torch.tensor([images, seconds, waited / seconds], device=accelerator.device)
        images, seconds, wait = accelerator.reduce(reading, "mean").tolist()
        return {"images_per_second": images * accelerator.num_processes / seconds, "data_wait": wait}
