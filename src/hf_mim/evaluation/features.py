"""Extract one feature vector per image, from any vision model of transformers or from the pixels themselves."""

import logging
import math
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeAlias

import datasets
import torch
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.images import UnreadableImageError, decode_image, value_range_of
from ..data.workers import LOADER_TIMEOUT, ignore_stop_signals
from ..utils.vision import patch_grid


logger = logging.getLogger(__name__)

# Largest side of images whose pixels are compared.
RAW_SIDE = 32
POOLINGS = ("auto", "cls", "mean", "pooler")

ImageDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset


@torch.no_grad()
def extract_features(
    model: PreTrainedModel,
    dataset: ImageDataset,
    image_processor: BaseImageProcessor,
    batch_size: int = 64,
    num_workers: int = 0,
    pooling: str = "auto",
    device: str | torch.device | None = None,
    progress: bool = True,
    skip_unreadable: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Encode every image of a dataset with a model in evaluation mode.

    The mode of every module is restored afterwards. Images are decoded and processed in the data-loading processes.
    Nothing is drawn from PyTorch's global generator.

    Args:
        model (`PreTrainedModel`): An encoder that takes `pixel_values` and returns `last_hidden_state`, such as
            `AutoModel` loads.
        dataset (`Dataset` or `IterableDataset`): Has a column `image` (bytes, path or image) and, where labels are
            wanted, `label`.
        image_processor (`BaseImageProcessor`): Applied to the decoded images. All images of a batch must come out at
            the same size.
        batch_size (`int`, defaults to 64): Images per forward pass.
        num_workers (`int`, defaults to 0): Data-loading processes.
        pooling (`str`, defaults to `"auto"`): How the model's output becomes one vector.
            `"cls"`: token 0 of `last_hidden_state` (for `IBotSwinModel` the mean patch, which takes its place).
            `"mean"`: mean of the patch tokens, without those in front of them such as CLS, or of the feature map.
            `"pooler"`: `pooler_output`, flattened. `AutoModel` gives a ViT without a pooler a random one.
            `"auto"`: `"cls"` if there are more tokens than patches, that is, if the model has a CLS token; otherwise
            `"pooler"` if the model returns one (Swin, ConvNeXt, ResNet, SigLIP), else `"mean"`.
        device (`str` or `torch.device`, *optional*): The model is moved there and stays there; defaults to where it
            is.
        progress (`bool`, defaults to `True`): Show a progress bar.
        skip_unreadable (`bool`, defaults to `False`): Skip unreadable images with a warning that names them, instead
            of raising.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: Features, float32 `[n, D]`, and labels, int64 `[n]` (-1 where a
        label is missing), on the CPU and in the order of the dataset (a stream that several processes read: in order
        of arrival). The labels are None without a column `label`.

    Raises:
        ValueError: For an unknown pooling, or one that the model's output does not allow; for a model that is not an
            image encoder; for a dataset without (readable) images; and for an unreadable image, naming the file.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    if model.main_input_name != "pixel_values":
        raise ValueError(
            f"{type(model).__name__} takes {model.main_input_name}, not pixel_values; load its vision encoder alone"
        )
    if device is not None:
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the method's signature
    num_channels = getattr(model.config, "num_channels", 3)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    features, labels = [], []
    try:
        for batch in image_batches(
            dataset, image_processor, batch_size, num_workers, num_channels, progress, skip_unreadable
        ):
            pixel_values = batch["pixel_values"].to(model.device, model.dtype)
            features.append(_pool(model, pixel_values, pooling).float().cpu())
            labels.append(batch["labels"])
    finally:
        for module, training in modes:
            module.training = training
    return _join(features, labels)


def raw_pixel_features(
    dataset: ImageDataset,
    image_processor: BaseImageProcessor,
    batch_size: int = 64,
    num_workers: int = 0,
    num_channels: int = 3,
    progress: bool = True,
    skip_unreadable: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Return the processed pixels themselves, flattened to `[n, C*H*W]`: the baseline that an encoder has to beat.

    Images of more than 32 pixels a side are reduced to 32 by averaging: at full size, their pixels would take
    gigabytes and make worse neighbors.

    Arguments and returns are those of [`extract_features`]; `num_channels` is 1, 3 or 4.
    """
    features, labels = [], []
    for batch in image_batches(
        dataset, image_processor, batch_size, num_workers, num_channels, progress, skip_unreadable
    ):
        pixels = batch["pixel_values"].float()
        height, width = pixels.shape[-2:]
        size = (min(height, RAW_SIDE), min(width, RAW_SIDE))
        features.append(adaptive_avg_pool2d(pixels, size).flatten(1))
        labels.append(batch["labels"])
    return _join(features, labels)


def image_batches(
    dataset: ImageDataset,
    image_processor: BaseImageProcessor,
    batch_size: int,
    num_workers: int,
    num_channels: int,
    progress: bool,
    skip_unreadable: bool,
) -> Iterator[dict[str, Any]]:
    """Yield batches: `pixel_values`, processed images `[B, C, H, W]`, and `labels`, int64 `[B]` or None."""
    loader: DataLoader = DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=partial(
            _process, image_processor=image_processor, num_channels=num_channels, skip_unreadable=skip_unreadable
        ),
        # The loader draws a seed for its workers; without its own generator, it would draw from the global one.
        generator=torch.Generator(),
        worker_init_fn=ignore_stop_signals,
        timeout=LOADER_TIMEOUT if num_workers else 0,
    )
    streamed = isinstance(dataset, datasets.IterableDataset)
    total = None if streamed else math.ceil(len(dataset) / batch_size)
    for batch in tqdm(
        loader, total=total, desc="features", unit="batch", disable=None if progress else True, leave=False
    ):
        if batch is not None:
            yield batch


def _process(
    rows: list[dict], image_processor: BaseImageProcessor, num_channels: int, skip_unreadable: bool
) -> dict | None:
    images, readable, value_range = [], [], value_range_of(image_processor)
    for row in rows:
        try:
            images.append(decode_image(row["image"], num_channels, value_range))
            readable.append(row)
        except (UnreadableImageError, OSError) as error:
            if not skip_unreadable:
                raise
            logger.warning(f"{error}; it is skipped")
    if not images:
        return None
    labels = None
    if "label" in rows[0]:
        labels = torch.tensor([-1 if row["label"] is None else row["label"] for row in readable])
    return {"pixel_values": image_processor(images, return_tensors="pt")["pixel_values"], "labels": labels}


def _pool(model: PreTrainedModel, pixel_values: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return features `[B, D]` of normalized images `[B, C, H, W]`."""
    output = model(pixel_values)
    hidden = output.get("last_hidden_state")
    if hidden is None:
        raise ValueError(f"{type(model).__name__} returns no last_hidden_state; load the encoder with AutoModel")
    grid = patch_grid(model.config, (pixel_values.shape[-2], pixel_values.shape[-1]))
    is_tokens = hidden.ndim == 3
    num_patches = hidden.shape[1] if grid is None else grid[0] * grid[1]
    has_cls = is_tokens and hidden.shape[1] > num_patches
    if pooling == "cls" and not has_cls:
        raise ValueError(
            f"{type(model).__name__} has no CLS token (its output is {[*hidden.shape]}); use pooling mean or pooler"
        )
    if pooling == "cls" or (pooling == "auto" and has_cls):
        return hidden[:, 0]

    pooled = output.get("pooler_output")
    if pooling == "pooler" and pooled is None:
        raise ValueError(f"{type(model).__name__} returns no pooler_output; use pooling cls or mean")
    if pooling != "mean" and pooled is not None:
        return pooled.flatten(1)
    if not is_tokens:
        return hidden.flatten(2).mean(dim=2)
    return hidden[:, -num_patches:].mean(dim=1) if has_cls else hidden.mean(dim=1)


def _join(features: list[torch.Tensor], labels: list) -> tuple[torch.Tensor, torch.Tensor | None]:
    if not features:
        raise ValueError("the dataset is empty: there is nothing to extract features from")
    return torch.cat(features), None if labels[0] is None else torch.cat(labels)
