"""Measure how many images per second a run trains on, and how long it waits for them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator


class Throughput:
    """
    Clock of the training loop. It starts when the first batch is requested and stops inside `paused`.

    It never synchronizes with a GPU. Readings are accurate nevertheless if they are taken right after the loop has
    waited for the GPU, for example to log the loss.

    Args:
        clock (`Callable`, defaults to `time.perf_counter`): Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        # Depth of nested `paused` blocks.
        self._pauses = 0
        self.restart()

    def restart(self) -> None:
        """Reset the clock at the beginning of training."""
        self._since: float | None = None
        self._images = 0
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of this block as waiting for the next batches."""
        start = self._clock()
        if self._since is None:
            self._since = start
        yield
        self._waited += self._clock() - start

    def count(self, images: int) -> None:
        """Add `images` to the number of images that were trained on."""
        self._images += images

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of this block, such as evaluation or saving. Nested blocks count once."""
        start = self._clock()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if self._pauses == 0 and self._since is not None:
                self._since += self._clock() - start

    def read(self) -> tuple[int, float, float]:
        """Return images, seconds and, among them, seconds of waiting since the last reading, and start a new one."""
        now = self._clock()
        seconds = 0.0 if self._since is None else now - self._since
        reading = self._images, seconds, self._waited
        self._since = None if self._since is None else now
        self._images, self._waited = 0, 0.0
        return reading

    def collect(self, accelerator: Accelerator) -> dict[str, float]:
        """
        Return the throughput since the last call. All processes must call this together.

        Returns:
            `images_per_second` of all processes together, where all views of an image count as one image, and
            `data_wait`, the mean fraction of the time in [0, 1] that processes waited for batches. Empty if there were
            no images.
        """
        images, seconds, waited = self.read()
        if not images:
            return {}
        reading = torch.tensor([images, seconds, waited / seconds], device=accelerator.device)
        mean_images, mean_seconds, mean_wait = accelerator.reduce(reading, "mean").tolist()
        return {"images_per_second": mean_images * accelerator.num_processes / mean_seconds, "data_wait": mean_wait}
