"""Training data sets: images in, augmented views out, every random draw from (seed, epoch, index)."""

import itertools
import zlib
from collections.abc import Iterator

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from .images import decode_image
from .views import MultiCropViews


def _sample(row: dict, index: int, epoch: int, views: MultiCropViews, num_channels: int, seed: int) -> dict:
    image = decode_image(row["image"], num_channels)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, index])))
    return views(image, rng) | {"index": index, "epoch": epoch}


class ViewsDataset(Dataset):
    """
    A map-style data set of images as augmented views.

    A sample depends on `(seed, epoch, index)` only: it is the same for any number of workers and processes, and after
    a resume.

    Args:
        dataset (`datasets.Dataset`): Rows with a column `image`, as [`~hf_mim.data.sources.load_image_dataset`] gives.
        views (`MultiCropViews`): Makes the views of an image.
        num_channels (`int`, defaults to 3): Channels of the views: 1 (greyscale), 3 (RGB) or 4 (RGBA).
        seed (`int`, defaults to 0): Seed, at least 0.
    """

    def __init__(self, dataset: datasets.Dataset, views: MultiCropViews, num_channels: int = 3, seed: int = 0):
        self.dataset, self.views, self.num_channels, self.seed = dataset, views, num_channels, seed
        # Shared, so that workers which outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int):
        """Make the views of another epoch from now on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return _sample(self.dataset[index], index, int(self._epoch), self.views, self.num_channels, self.seed)


class StreamedViewsDataset(IterableDataset):
    """
    A stream of images as augmented views, begun again whenever it ends.

    In place of an index, a sample's random draws come from a checksum of its encoded bytes, so that they too do not
    depend on the number of workers and processes. Identical files get identical views within an epoch.

    Args: as for [`ViewsDataset`], with `dataset` a `datasets.IterableDataset`.
    """

    def __init__(self, dataset: datasets.IterableDataset, views: MultiCropViews, num_channels: int = 3, seed: int = 0):
        self.dataset, self.views, self.num_channels, self.seed = dataset, views, num_channels, seed

    def __iter__(self) -> Iterator[dict]:
        # Endless, because Trainer takes the whole run for one epoch and skips that many samples on a resume.
        for epoch in itertools.count():
            self.dataset.set_epoch(epoch)
            row = None
            for row in self.dataset:
                image = row["image"]
                index = zlib.crc32(image["bytes"] if image["bytes"] is not None else image["path"].encode())
                yield _sample(row, index, epoch, self.views, self.num_channels, self.seed)
            if row is None:
                return
