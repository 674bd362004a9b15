"""Report unreadable images, and stop the run if there are too many of them."""

import logging

from accelerate.utils import gather_object


logger = logging.getLogger(__name__)

# The size of a stream is unknown. Without a minimum, a single bad image among the first ones would stop the run.
LEAST_STREAMED_IMAGES = 1000


class UnreadableImages:
    """
    Counts the unreadable images of a run, and logs each of them once.

    Args:
        num_images (`int`, *optional*): Number of images in the dataset. None for a stream, where the fraction is that
            of the images read so far.
        max_fraction (`float`): Maximum fraction of unreadable images, in [0, 1].
        num_processes (`int`): Number of processes that train together.
    """

    def __init__(self, num_images: int | None, max_fraction: float, num_processes: int):
        self.num_images, self.max_fraction, self.num_processes = num_images, max_fraction, num_processes
        self._messages: set[str] = set()
        self._images_read = 0

    def note(self, messages: list[str], batch_size: int) -> None:
        """
        Add a batch, and log the messages that are new.

        Args:
            messages (`list[str]`): One message for each unreadable image of the batch.
            batch_size (`int`): Number of images in the batch.

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
        """
        Return the number of unreadable images of all processes, which must call this together.

        Raises:
            ValueError: If there are too many unreadable images.
        """
        messages = set(gather_object(sorted(self._messages)))
        self._stop_above_limit(messages)
        return len(messages)

    def _stop_above_limit(self, messages: set[str]) -> None:
        total = self.num_images
        if total is None:
            total = max(self._images_read * self.num_processes, LEAST_STREAMED_IMAGES)
        if len(messages) > self.max_fraction * total:
            raise ValueError(
                f"{len(messages)} of {total} images cannot be read, more than --max_unreadable_fraction "
                f"{self.max_fraction:g}; one of them: {min(messages)}. `hf-mim check-data` lists them all"
            )
