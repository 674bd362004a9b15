"""Images of an analysis: load them, process them for a model, and turn them back into pictures."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import BaseImageProcessor

from ..data.images import IMAGE_EXTENSIONS, UnreadableImageError, decode_image, value_range_of
from ..data.sources import load_image_dataset


def load_images(
    sources: Sequence[str | Path], split: str = "train", config_name: str | None = None, column: str | None = None
) -> datasets.Dataset:
    """
    Load the images of several sources, in their order, into the column `image`.

    Args:
        sources (`Sequence[str | Path]`): Files, folders and names of datasets ("photo-tiles", ids of Hub datasets) in
            any combination, as [`~hf_mim.data.sources.load_image_dataset`] reads them.
        split (`str`, defaults to `"train"`): Split of folders and datasets that have splits.
        config_name, column (`str`, *optional*): Configuration and image column of datasets that need them.

    Raises:
        FileNotFoundError: For an image file that does not exist.
        ValueError: As for `load_image_dataset`, for example for a folder without images.
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
    """
    Return some images of a dataset as a model takes them, normalized: `[len(rows), C, H, W]`.

    Args:
        dataset (`Dataset`): Has a column `image`.
        rows (`list[int]` or `range`): Rows to process.
        image_processor (`BaseImageProcessor`): Image processor of the model.
        num_channels (`int`): Channels of the images: 1, 3 or 4.

    Raises:
        UnreadableImageError, OSError: For an image that cannot be read; the message names it.
    """
    images = []
    for row, source in zip(rows, dataset.select(rows)["image"], strict=True):
        try:
            images.append(decode_image(source, num_channels, value_range_of(image_processor)))
        except UnreadableImageError as error:
            named = source is not None and source["path"] is not None
            raise UnreadableImageError(f"{error}" if named else f"image {row}: {error}") from error
    return image_processor(images, return_tensors="pt")["pixel_values"]


def undo_normalization(pixel_values: torch.Tensor, image_processor: BaseImageProcessor) -> np.ndarray:
    """Turn a processor's output `[B, C, H, W]` into pictures in [0, 1], `[B, H, W, 3]` or, in gray, `[B, H, W]`."""
    settings = image_processor.to_dict()
    if settings.get("do_normalize"):
        channels = pixel_values.shape[1]
        mean, std = (
            torch.tensor(settings[name]).expand(channels)[:, None, None] for name in ("image_mean", "image_std")
        )
        pixel_values = pixel_values * std + mean
    pictures = pixel_values.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return pictures[..., 0] if pictures.shape[-1] == 1 else pictures[..., :3]
