"""One feature vector per image, from any vision model of transformers or from the pixels themselves."""

import logging
import math
from collections.abc import Iterator
from functools import partial

import datasets
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.images import UnreadableImageError, decode_image
from ..data.workers import ignore_stop_signals


logger = logging.getLogger(__name__)

POOLINGS = ("auto", "cls", "mean", "pooler")

ImageDataset = datasets.Dataset | datasets.IterableDataset


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
    """Encode every image of a dataset with the model in evaluation mode; each module's mode is put back afterwards.

    Images are decoded and processed in the loading processes; nothing is drawn from PyTorch's global generator.

    Args:
        model: an encoder that takes `pixel_values` and returns `last_hidden_state` (what `AutoModel` loads).
        dataset: with a column `image` (bytes, path, or picture) and, where labels are wanted, `label`.
        image_processor: applied to the decoded images; all images of a batch must come out equally large.
        pooling: how the model's output becomes one vector.
            "cls": token 0 of `last_hidden_state` (of `IBotSwinModel` the mean patch, which takes its place).
            "mean": mean of the patch tokens (those in front of them, such as CLS, left out) or of the feature map.
            "pooler": `pooler_output`, flattened. Beware: AutoModel gives a ViT that has no pooler a random one.
            "auto": "cls" if there are more tokens than patches, that is, if the model has a CLS token; otherwise
            "pooler" if the model returns one (Swin, ConvNeXt, ResNet, SigLIP), else "mean".
        device: the model is moved there and stays there; by default it runs where it is.
        skip_unreadable: leave out unreadable images, with a warning that names them, instead of raising.

    Returns:
        Features float32 `[n, D]` and labels int64 `[n]` (-1 where a label is missing), both on the CPU and in the
        dataset's order (a stream read by several processes: in the order of arrival). Labels are None without a
        column `label`.

    Raises:
        ValueError: for an unknown pooling, one that the model's output does not allow, a model that is not an image
            encoder, or a dataset without (readable) images; and, naming the file, for an unreadable image.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    if model.main_input_name != "pixel_values":
        raise ValueError(
            f"{type(model).__name__} takes {model.main_input_name}, not pixel_values; load its vision encoder alone"
        )
    if device is not None:
        model.to(device)
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
    """The processed pixels themselves, flattened to `[n, C*H*W]`: the baseline that an encoder has to beat.

    Arguments and returns as for `extract_features`; `num_channels` is 1, 3 or 4.
    """
    features, labels = [], []
    for batch in image_batches(
        dataset, image_processor, batch_size, num_workers, num_channels, progress, skip_unreadable
    ):
        features.append(batch["pixel_values"].flatten(1).float())
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
) -> Iterator[dict[str, torch.Tensor | None]]:
    """Processed images `[B, C, H, W]` as "pixel_values" and int64 `[B]` or None as "labels"."""
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=partial(
            _process, image_processor=image_processor, num_channels=num_channels, skip_unreadable=skip_unreadable
        ),
        # the loader draws a seed for its workers; without a generator of its own, from the global one
        generator=torch.Generator(),
        worker_init_fn=ignore_stop_signals,
    )
    streamed = isinstance(dataset, datasets.IterableDataset)
    total = None if streamed else math.ceil(len(dataset) / batch_size)
    for batch in tqdm(loader, total=total, desc="features", unit="batch", disable=not progress, leave=False):
        if batch is not None:
            yield batch


def _process(
    rows: list[dict], image_processor: BaseImageProcessor, num_channels: int, skip_unreadable: bool
) -> dict | None:
    images, readable = [], []
    for row in rows:
        try:
            images.append(decode_image(row["image"], num_channels))
            readable.append(row)
        except (UnreadableImageError, OSError) as error:
            if not skip_unreadable:
                raise
            logger.warning(f"{error}; it is left out")
    if not images:
        return None
    labels = None
    if "label" in rows[0]:
        labels = torch.tensor([-1 if row["label"] is None else row["label"] for row in readable])
    return {"pixel_values": image_processor(images, return_tensors="pt")["pixel_values"], "labels": labels}


def _pool(model: PreTrainedModel, pixel_values: torch.Tensor, pooling: str) -> torch.Tensor:
    """Features `[B, D]` of normalised images `[B, C, H, W]`."""
    output = model(pixel_values)
    hidden = output.get("last_hidden_state")
    if hidden is None:
        raise ValueError(f"{type(model).__name__} returns no last_hidden_state; load the encoder with AutoModel")
    num_patches = _num_patches(model.config, pixel_values)
    is_tokens = hidden.ndim == 3
    has_cls = is_tokens and num_patches is not None and hidden.shape[1] > num_patches
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


def _num_patches(config, pixel_values: torch.Tensor) -> int | None:
    """
    Patches per image if the model were a ViT, or those behind the mean patch of an iBOT with a Swin Transformer; None
    for a model without a patch size.
    """
    if (stride := getattr(config, "token_stride", None)) is not None:
        return math.ceil(pixel_values.shape[-2] / stride) * math.ceil(pixel_values.shape[-1] / stride)
    patch_size = getattr(config, "patch_size", None)
    if patch_size is None:
        return None
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    return (pixel_values.shape[-2] // height) * (pixel_values.shape[-1] // width)


def _join(features: list[torch.Tensor], labels: list) -> tuple[torch.Tensor, torch.Tensor | None]:
    if not features:
        raise ValueError("the dataset is empty: there is nothing to extract features from")
    return torch.cat(features), None if labels[0] is None else torch.cat(labels)
