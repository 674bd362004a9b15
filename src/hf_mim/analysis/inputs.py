"""Images that an analysis reads, as a model gets them and as a person sees them."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import BaseImageProcessor

from ..data.images import IMAGE_EXTENSIONS, UnreadableImageError, decode_image
from ..data.sources import load_image_dataset


def load_images(
    sources: Sequence[str | Path], split: str = "train", config_name: str | None = None, column: str | None = None
) -> datasets.Dataset:
    """All images of several sources in their order, in the column `image`.

    Args:
        sources: files, folders, or names of data sets ("photo-tiles", the id of a Hub data set), in any mixture, as
            `hf_mim.data.sources.load_image_dataset` reads them.
        split: of folders and data sets that have splits.
        config_name, column: configuration and image column of data sets that need them.

    Raises:
        FileNotFoundError: for an image file that does not exist.
        ValueError: as `load_image_dataset`, for instance for a folder without images.
    """
    parts = []
    for source in map(str, sources):
        if config_name is None and Path(source).expanduser().exists():
            part = load_image_dataset(data_dir=source, split=split, image_column_name=column)
        elif Path(source).suffix.lower() in IMAGE_EXTENSIONS:
            raise FileNotFoundError(f"{source} does not exist")
        else:
            part = load_image_dataset(
                dataset_name=source, dataset_config_name=config_name, split=split, image_column_name=column
            )
        parts.append(part.select_columns("image"))
    return datasets.concatenate_datasets(parts)


def process_images(
    dataset: datasets.Dataset, rows: list[int] | range, image_processor: BaseImageProcessor, num_channels: int
) -> torch.Tensor:
    """Normalised images `[len(rows), C, H, W]` of a dataset with a column `image`.

    Raises:
        UnreadableImageError, OSError: for an image that cannot be read; the message names it.
    """
    images = []
    for row, source in zip(rows, dataset.select(rows)["image"], strict=True):
        try:
            images.append(decode_image(source, num_channels))
        except UnreadableImageError as error:
            named = source is not None and source["path"] is not None
            raise UnreadableImageError(f"{error}" if named else f"image {row}: {error}") from error
    return image_processor(images, return_tensors="pt")["pixel_values"]


def undo_normalization(pixel_values: torch.Tensor, image_processor: BaseImageProcessor) -> np.ndarray:
    """Pictures `[B, H, W, 3]` (`[B, H, W]` for one channel) in [0, 1] from the processor's output `[B, C, H, W]`."""
    if image_processor.do_normalize:
        channels = pixel_values.shape[1]
        mean = torch.tensor(image_processor.image_mean).expand(channels)[:, None, None]
        std = torch.tensor(image_processor.image_std).expand(channels)[:, None, None]
        pixel_values = pixel_values * std + mean
    pictures = pixel_values.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return pictures[..., 0] if pictures.shape[-1] == 1 else pictures[..., :3]
