"""Load the images that `hf-mim pretrain` trains and evaluates on."""

import glob
import logging
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from datasets import Dataset, IterableDataset
from PIL import Image

from ...data.clean_list import keep_listed
from ...data.datasets import MAX_ATTEMPTS
from ...data.images import UnreadableImageError, decode_image
from ...data.sources import load_image_dataset, random_subset
from .options import DataArguments, ModelArguments


logger = logging.getLogger(__name__)


class PretrainData(NamedTuple):
    """
    Datasets of a run.

    Args:
        train (`Dataset` or `IterableDataset`): Training images.
        bank (`Dataset`, *optional*): Labeled training images among which k-NN searches for neighbors. None if the
            evaluation needs no labels.
        queries (`Dataset`, *optional*): Images to evaluate on. None if there are no held-out images.
    """

    train: Dataset | IterableDataset
    bank: Dataset | None = None
    queries: Dataset | None = None


class _Columns(TypedDict):
    image_column_name: str | None
    label_column_name: str | None
    cache_dir: str | None
    token: str | None


class _Source(TypedDict):
    dataset_name: str | None
    dataset_config_name: str | None
    data_dir: str | None


def load_data(args: DataArguments, model_args: ModelArguments, seed: int, labels: bool = True) -> PretrainData:
    """
    Load the training images and, unless they are streamed, the datasets of the evaluation.

    Args:
        args (`DataArguments`): Data options.
        model_args (`ModelArguments`): Where downloads are kept, and the access token for the Hub.
        seed (`int`): Seed of random subsets, of the held-out images and of the order of a stream.
        labels (`bool`, defaults to `True`): Whether the evaluation needs labels, and therefore a bank.

    Raises:
        ValueError, FileNotFoundError: If a folder, split or column is missing.
    """
    columns: _Columns = {
        "image_column_name": args.image_column_name,
        "label_column_name": args.label_column_name,
        "cache_dir": model_args.cache_dir,
        "token": model_args.token,
    }
    for name, folder in (("train_dir", args.train_dir), ("validation_dir", args.validation_dir)):
        if folder is None or "://" in folder or glob.has_magic(folder):
            continue
        if not Path(folder).expanduser().exists():
            raise FileNotFoundError(f"{name} {folder} does not exist")
    source: _Source = {
        "dataset_name": args.dataset_name,
        "dataset_config_name": args.dataset_config_name,
        "data_dir": args.train_dir,
    }
    train = load_image_dataset(**source, split=args.train_split, streaming=args.streaming, **columns)
    if isinstance(train, IterableDataset):
        if args.eval_split or args.validation_dir or args.train_val_split:
            logger.warning("no images of a stream are held out: there is no evaluation")
        if args.max_train_samples is not None:
            train = train.take(args.max_train_samples)
        return PretrainData(train.shuffle(seed=seed, buffer_size=args.shuffle_buffer_size))
    if args.clean_list is not None:
        train = keep_listed(train, args.clean_list, args.train_dir)

    queries = None
    if args.validation_dir is not None:
        queries = load_image_dataset(data_dir=args.validation_dir, split=args.eval_split or "train", **columns)
    elif args.eval_split is not None:
        queries = load_image_dataset(**source, split=args.eval_split, **columns)
    elif args.train_val_split is not None:
        parts = train.train_test_split(args.train_val_split, seed=seed)
        train, queries = parts["train"], parts["test"]
    train = random_subset(train, args.max_train_samples, seed)
    if queries is None:
        return PretrainData(train)
    assert isinstance(queries, Dataset)
    if not labels:
        return PretrainData(train, queries=random_subset(queries, args.max_eval_samples, seed))
    for name, dataset in (("training", train), ("evaluation", queries)):
        if "label" not in dataset.column_names:
            raise ValueError(f"the {name} images have no labels, which the k-NN evaluation needs; leave out the split")
    classes, other = (getattr(dataset.features["label"], "names", None) for dataset in (train, queries))
    if classes != other:
        raise ValueError(f"the evaluation images have other classes than the training images: {other} and {classes}")
    bank = random_subset(train, args.max_bank_samples, seed)
    return PretrainData(train, bank, random_subset(queries, args.max_eval_samples, seed))


def example_images(dataset: Dataset | IterableDataset, num_channels: int, count: int) -> list[Image.Image]:
    """Return `count` images spread over a dataset, for the pictures. An unreadable image is replaced by the next."""
    rows = list(dataset.take(2 * count)) if isinstance(dataset, IterableDataset) else dataset
    images = []
    for start in np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int):
        for offset in range(min(len(rows), MAX_ATTEMPTS)):
            try:
                images.append(decode_image(rows[int(start + offset) % len(rows)]["image"], num_channels))
                break
            except (UnreadableImageError, OSError):
                continue
    return images
