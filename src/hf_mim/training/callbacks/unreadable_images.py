"""Images that cannot be read: named once, counted, and too many of them stop the run."""

import logging

from accelerate.utils import gather_object


logger = logging.getLogger(__name__)

# A stream does not tell how many images it has; as long as few were read, one bad image is no large share of them.
LEAST_STREAMED_IMAGES = 1000


class UnreadableImages:
    """
    Args:
        num_images (`int` or None): Number of images of the data set; None for a stream, whose share is taken of the
            images read so far.
        max_fraction (`float`): Largest share of unreadable images, in [0, 1].
        num_processes (`int`): Processes that train together.
    """

    def __init__(self, num_images: int | None, max_fraction: float, num_processes: int):
        self.num_images, self.max_fraction, self.num_processes = num_images, max_fraction, num_processes
        self._messages: set[str] = set()
        self._images_read = 0

    def note(self, messages: list[str], batch_size: int):
        """
        Take the messages about one batch of `batch_size` images, and log those that are new.

        Raises:
            ValueError: If there are too many unreadable images.
        """
        self._images_read += batch_size
        new = [message for message in dict.fromkeys(messages) if message not in self._messages]
        for message in new:
            logger.warning(f"{message}; another image takes its place")
        if new:
            self._messages.update(new)
            self._stop_above_limit(self._messages)

    def count(self) -> int:
        """Unreadable images that any process has met; all processes must call this. Raises as `note` does."""
        messages = set(gather_object(sorted(self._messages)))
        self._stop_above_limit(messages)
        return len(messages)

    def _stop_above_limit(self, messages: set[str]):
        total = self.num_images
        if total is None:
            total = max(self._images_read * self.num_processes, LEAST_STREAMED_IMAGES)
        if len(messages) > self.max_fraction * total:
            raise ValueError(
                f"{len(messages)} of {total} images cannot be read, more than --max_unreadable_fraction "
                f"{self.max_fraction:g}; one of them: {min(messages)}. `hf-mim check-data` lists them all"
            )
