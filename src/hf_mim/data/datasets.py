"""Training data sets: images in, augmented views out, every random draw from (seed, epoch, index)."""

import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from .images import UnreadableImageError, decode_image


# Images tried for one sample. Even of a folder with every tenth unreadable, all ten are a matter of 1e-10.
MAX_ATTEMPTS = 10

Views = Callable[[Image.Image, np.random.Generator], dict[str, Any]]


class ViewsDataset(Dataset):
    """
    A map-style data set of images as augmented views.

    A sample depends on `(seed, epoch, index)` only: it is the same for any number of workers and processes, and after
    a resume. In place of an unreadable image another one is taken, whose index is drawn from the same numbers; views
    and masks stay those of `index`. The sample then has the key `unreadable`: one line for each image that could not
    be read.

    Args:
        dataset (`datasets.Dataset`): Rows with a column `image`, as [`~hf_mim.data.sources.load_image_dataset`] gives.
        views (`Callable`):
            Makes a dict of views from an image and a generator: `MultiCropViews` or `CropViews`. Called in the
            loading processes.
        num_channels (`int`, defaults to 3): Channels of the views: 1 (greyscale), 3 (RGB) or 4 (RGBA).
        seed (`int`, defaults to 0): Seed, at least 0.

    Raises (from indexing):
        UnreadableImageError: If `MAX_ATTEMPTS` images in a row cannot be read; the message names them.
    """

    def __init__(self, dataset: datasets.Dataset, views: Views, num_channels: int = 3, seed: int = 0):
        self.dataset, self.views, self.num_channels, self.seed = dataset, views, num_channels, seed
        # Shared, so that workers which outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int):
        """Make the views of another epoch from now on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        epoch, chosen, unreadable = int(self._epoch), index, []
        for attempt in range(1, MAX_ATTEMPTS + 1):
            image = self.dataset[chosen]["image"]
            try:
                sample = _sample(image, index, epoch, self.views, self.num_channels, self.seed)
            except (UnreadableImageError, OSError) as error:
                named = image is not None and image["path"] is not None
                unreadable.append(f"{error}" if named else f"row {chosen}: {error}")
                chosen = int(_generator(self.seed, epoch, index, attempt).integers(len(self.dataset)))
            else:
                return sample | ({"unreadable": unreadable} if unreadable else {})
        raise UnreadableImageError(f"{MAX_ATTEMPTS} images in a row are unreadable: {'; '.join(unreadable)}")


class StreamedViewsDataset(IterableDataset):
    """
    A stream of encoded images, begun again whenever it ends, and their augmented views (`samples`).

    The stream itself yields rows with the keys `image`, `index` and `epoch`. Of several processes each reads all of
    them and keeps its share, so that views are only made when a batch is put together, of what is in it.

    In place of an index, a sample's random draws come from a checksum of its encoded bytes, so that they too do not
    depend on the number of workers and processes. Identical files get identical views within an epoch.

    Args: as for [`ViewsDataset`], with `dataset` a `datasets.IterableDataset`, and
        order (`dict`, *optional*): What decides the order of the images, such as the size of a shuffle buffer; a run
            is only resumed with the same.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        views: Views,
        num_channels: int = 3,
        seed: int = 0,
        order: dict | None = None,
    ):
        self.dataset, self.views, self.num_channels, self.seed = dataset, views, num_channels, seed
        self.order = {"number of shards": dataset.num_shards} | (order or {})

    def __iter__(self) -> Iterator[dict]:
        # Endless, because Trainer takes the whole run for one epoch and skips that many samples on a resume.
        for epoch in itertools.count():
            self.dataset.set_epoch(epoch)
            row = None
            for row in self.dataset:
                yield {"image": row["image"], "index": _checksum(row["image"]), "epoch": epoch}
            if row is None:
                return

    def samples(self, rows: list[dict]) -> list[dict]:
        """
        The samples of a batch, as a [`ViewsDataset`] makes them, from rows of the stream.

        In place of an unreadable image the next readable one of the batch is taken, after the last the first; views
        and masks stay those of the unreadable one's checksum.

        Raises:
            UnreadableImageError: If no image of the batch can be read; the message names them.
        """
        samples, errors = [], {}
        for number, row in enumerate(rows):
            for candidate in (*range(number, len(rows)), *range(number)):
                if candidate in errors:
                    continue
                image = rows[candidate]["image"]
                try:
                    sample = _sample(image, row["index"], row["epoch"], self.views, self.num_channels, self.seed)
                    break
                except (UnreadableImageError, OSError) as error:
                    errors[candidate] = f"{error}"
            else:
                raise UnreadableImageError(f"no image of a batch is readable: {'; '.join(errors.values())}")
            samples.append(sample | ({"unreadable": [errors[number]]} if number in errors else {}))
        return samples


def _sample(image: dict[str, Any] | None, index: int, epoch: int, views: Views, num_channels: int, seed: int) -> dict:
    return views(decode_image(image, num_channels), _generator(seed, epoch, index)) | {"index": index, "epoch": epoch}


def _generator(*seeds: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seeds)))


def _checksum(image: dict[str, Any] | None) -> int:
    image = image or {"bytes": b"", "path": None}
    return zlib.crc32(image["bytes"] if image["bytes"] is not None else image["path"].encode())
