"""Training datasets: images in, augmented views out, every random draw from (seed, epoch, index)."""

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from .images import UnreadableImageError, decode_image


# Images tried for one sample. With 10 % unreadable images, ten failures in a row have a probability of 1e-10.
MAX_ATTEMPTS = 10

Views = Callable[[Image.Image, np.random.Generator], dict[str, Any]]


class ViewsDataset(Dataset):
    """
    A map-style dataset of augmented views of images.

    A sample depends only on `(seed, epoch, index)`: it is the same for any number of workers and processes, and after
    a resume. An unreadable image is replaced by another one, whose index is drawn from the same numbers; views and
    masks are still drawn for `index`. The sample then has the key `unreadable`: one line for each image that could
    not be read.

    Args:
        dataset (`datasets.Dataset`): Rows with a column `image`, as [`~hf_mim.data.sources.load_image_dataset`]
            returns.
        views (`Callable`): Makes a dictionary of views from an image and a generator: `MultiCropViews` or `CropViews`.
            Called in the data-loading processes.
        num_channels (`int`, defaults to 3): Channels of the views: 1 (grayscale), 3 (RGB) or 4 (RGBA).
        seed (`int`, defaults to 0): Seed, at least 0.
        value_range (`Sequence[float]`, *optional*): As for [`~hf_mim.data.images.decode_image`].

    Raises (from indexing):
        UnreadableImageError: If `MAX_ATTEMPTS` images in a row cannot be read; the message names them.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        views: Views,
        num_channels: int = 3,
        seed: int = 0,
        value_range: Sequence[float] | None = None,
    ):
        self.dataset, self.views, self.seed = dataset, views, seed
        self.num_channels, self.value_range = num_channels, value_range
        # In shared memory, so that persistent workers see the next epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int):
        """Set the epoch of the views made from now on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        epoch, chosen, unreadable = int(self._epoch), index, []
        for attempt in range(1, MAX_ATTEMPTS + 1):
            image = self.dataset[chosen]["image"]
            try:
                decoded = decode_image(image, self.num_channels, self.value_range)
                sample = _sample(decoded, index, epoch, self.views, self.seed)
            except (UnreadableImageError, OSError) as error:
                named = image is not None and image["path"] is not None
                unreadable.append(f"{error}" if named else f"row {chosen}: {error}")
                chosen = int(_generator(self.seed, epoch, index, attempt).integers(len(self.dataset)))
            else:
                return sample | ({"unreadable": unreadable} if unreadable else {})
        raise UnreadableImageError(f"{MAX_ATTEMPTS} images in a row are unreadable: {'; '.join(unreadable)}")


class StreamedViewsDataset(IterableDataset):
    """
    An endless stream of encoded images, restarted whenever it ends, and their augmented views (`samples`).

    The stream itself yields rows with the keys `image`, `index` and `epoch`. Each process reads all rows and keeps its
    share, so views are made only when a batch is put together.

    Instead of an index, a checksum of the encoded bytes seeds the random draws of a sample, so that they do not depend
    on the number of workers and processes either. Identical files get identical views within an epoch.

    Args:
        dataset (`datasets.IterableDataset`): Rows with a column `image`.
        views, num_channels, seed, value_range: As for [`ViewsDataset`].
        order (`dict`, *optional*): Settings that determine the order of the images, such as the size of a shuffle
            buffer. A run can only be resumed with the same settings.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        views: Views,
        num_channels: int = 3,
        seed: int = 0,
        order: dict | None = None,
        value_range: Sequence[float] | None = None,
    ):
        self.dataset, self.views, self.seed = dataset, views, seed
        self.num_channels, self.value_range = num_channels, value_range
        self.order = {"number of shards": dataset.num_shards} | (order or {})

    def __iter__(self) -> Iterator[dict]:
        # Endless, because the Trainer treats the whole run as one epoch and skips that many samples on a resume.
        for epoch in itertools.count():
            self.dataset.set_epoch(epoch)
            row = None
            for row in self.dataset:
                yield {"image": row["image"], "index": _checksum(row["image"]), "epoch": epoch}
            if row is None:
                return

    def samples(self, rows: list[dict]) -> list[dict]:
        """
        Make the samples of a batch from rows of the stream, as a [`ViewsDataset`] does.

        An unreadable image is replaced by the next readable one of the batch, cyclically; views and masks are still
        drawn for the unreadable one's checksum.

        Raises:
            UnreadableImageError: If no image of the batch can be read; the message names them.
        """
        samples: list[dict] = []
        errors: dict[int, str] = {}
        for number, row in enumerate(rows):
            for candidate in (*range(number, len(rows)), *range(number)):
                if candidate in errors:
                    continue
                image = rows[candidate]["image"]
                try:
                    decoded = decode_image(image, self.num_channels, self.value_range)
                    sample = _sample(decoded, row["index"], row["epoch"], self.views, self.seed)
                    break
                except (UnreadableImageError, OSError) as error:
                    errors[candidate] = f"{error}"
            else:
                raise UnreadableImageError(f"no image of a batch is readable: {'; '.join(errors.values())}")
            samples.append(sample | ({"unreadable": [errors[number]]} if number in errors else {}))
        return samples


def _sample(image: Image.Image, index: int, epoch: int, views: Views, seed: int) -> dict:
    return views(image, _generator(seed, epoch, index)) | {"index": index, "epoch": epoch}


def _generator(*seeds: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seeds)))


def _checksum(image: dict[str, Any] | None) -> int:
    image = image or {"bytes": b"", "path": None}
    return zlib.crc32(image["bytes"] if image["bytes"] is not None else image["path"].encode())
