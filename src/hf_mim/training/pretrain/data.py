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
from ...data.labels import LabelError, OtherClassesError, class_names, labeled_rows, same_classes
from ...data.source_report import look_at
from ...data.sources import load_image_dataset, random_subset
from .options import DataArguments, ModelArguments


logger = logging.getLogger(__name__)

# Images among which one is chosen for a picture.
CANDIDATES = 6


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


class _Options(TypedDict):
    image_column_name: str | None
    label_column_name: str | None
    cache_dir: str | None
    token: str | None
    outside_paths: bool
    notes: list[str]


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
    notes: list[str] = []
    options: _Options = {
        "image_column_name": args.image_column_name,
        "label_column_name": args.label_column_name,
        "cache_dir": model_args.cache_dir,
        "token": model_args.token,
        "outside_paths": args.outside_paths,
        "notes": notes,
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
    try:
        train = load_image_dataset(**source, split=args.train_split, streaming=args.streaming, **options)
    except LabelError as error:
        # The column is that of the evaluation images, if there are others; it must exist there.
        if args.validation_dir is None:
            raise
        notes.append(f"the training images: {error}")
        without: _Options = {**options, "label_column_name": None}
        train = load_image_dataset(**source, split=args.train_split, streaming=args.streaming, **without)
    if isinstance(train, IterableDataset):
        if args.eval_split or args.validation_dir or args.train_val_split:
            notes.append("no images of a stream are held out: there is no evaluation")
        _log(notes)
        if args.max_train_samples is not None:
            train = train.take(args.max_train_samples)
        return PretrainData(train.shuffle(seed=seed, buffer_size=args.shuffle_buffer_size))
    if args.clean_list is not None:
        train = keep_listed(train, args.clean_list, args.train_dir)
    notes += look_at(train, args.value_range)

    queries = None
    known = class_names(train)
    if args.validation_dir is not None:
        split = args.eval_split or "train"
        queries = load_image_dataset(data_dir=args.validation_dir, split=split, known_classes=known, **options)
    elif args.eval_split is not None:
        queries = load_image_dataset(**source, split=args.eval_split, known_classes=known, **options)
    elif args.train_val_split is not None:
        parts = train.train_test_split(args.train_val_split, seed=seed)
        train, queries = parts["train"], parts["test"]
    assert queries is None or isinstance(queries, Dataset)
    bank = None
    if queries is not None and labels:
        bank, queries = _labeled(train, queries, seed, notes)
    _log(notes)
    if queries is not None:
        queries = random_subset(queries, args.max_eval_samples, seed)
    if bank is not None:
        bank = random_subset(bank, args.max_bank_samples, seed)
    return PretrainData(random_subset(train, args.max_train_samples, seed), bank, queries)


def _labeled(train: Dataset, queries: Dataset, seed: int, notes: list[str]) -> tuple[Dataset, Dataset]:
    """
    Return the images that vote in the k-NN evaluation, and those to classify. All of them have labels.

    Without labels of the training images, a random half of the evaluation images vote, half of each class.

    Raises:
        ValueError: If there are no labels, or the labels of both do not go together.
    """
    if "label" not in queries.column_names:
        raise ValueError(
            f"the evaluation images have no labels, which the k-NN evaluation needs{_reasons(notes)}: sort them into "
            "one folder per class, name the column with --label_column_name, or leave out the split"
        )
    queries, missing = labeled_rows(queries)
    if missing:
        notes.append(f"{missing} evaluation images have no label and are left out of the evaluation")
    if not len(queries):
        raise ValueError("no evaluation image has a label, which the k-NN evaluation needs; leave out the split")
    if "label" not in train.column_names:
        return _halves(queries, seed, "the training images have no labels", notes)
    bank, missing = labeled_rows(train)
    if missing:
        notes.append(
            f"{missing} training images have no label: they are trained on, and do not vote in the evaluation"
        )
    if not len(bank):
        raise ValueError("no training image has a label, which the k-NN evaluation needs; leave out the split")
    try:
        bank, queries, line = same_classes(bank, queries, ("the training images", "evaluation images"))
    except OtherClassesError as error:
        # Plain folders of unlabeled images look like classes.
        return _halves(queries, seed, str(error), notes)
    if line is not None:
        notes.append(line)
    return bank, queries


def _halves(dataset: Dataset, seed: int, reason: str, notes: list[str]) -> tuple[Dataset, Dataset]:
    """
    Split the evaluation images into those that vote and those to classify, each half of every class.

    Of a class with one image, this image votes.
    """
    labels = np.asarray(dataset["label"])
    order = np.random.default_rng(seed).permutation(len(labels))
    # Every second image of each class, in random order.
    order = order[np.argsort(labels[order], kind="stable")]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(labels[order])) + 1])
    place = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    if not (place % 2).any():
        raise ValueError(
            f"{reason}, and each class has only one labeled evaluation image: the k-NN evaluation needs two or more"
        )
    voting, asked = np.sort(order[place % 2 == 0]), np.sort(order[place % 2 == 1])
    notes.append(
        f"{reason}: {len(voting)} of the {len(dataset)} labeled evaluation images vote in the k-NN evaluation, for "
        f"the other {len(asked)}"
    )
    return dataset.select(voting), dataset.select(asked)


def _log(notes: list[str]) -> None:
    for note in dict.fromkeys(notes):
        logger.info(note)


def _reasons(notes: list[str]) -> str:
    reasons = [note for note in notes if "label" in note]
    return f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""


def example_images(
    dataset: Dataset | IterableDataset, num_channels: int, count: int, value_range: list[float] | None = None
) -> list[Image.Image]:
    """
    Return `count` images spread over a dataset, for the pictures.

    Of the readable images around each place, the one with the most detail is taken: many images show little but
    background.
    """
    rows = list(dataset.take(CANDIDATES * count)) if isinstance(dataset, IterableDataset) else dataset
    images = []
    for start in np.linspace(0, max(len(rows) - CANDIDATES, 0), min(count, len(rows))).astype(int):
        found = []
        for row in range(start, min(start + MAX_ATTEMPTS, len(rows))):
            try:
                found.append(decode_image(rows[int(row)]["image"], num_channels, value_range))
            except (UnreadableImageError, OSError):
                continue
            if len(found) == CANDIDATES:
                break
        if found:
            images.append(max(found, key=_detail))
    return images


def _detail(image: Image.Image) -> float:
    """Return how much the brightness of an image differs between the cells of a grid of 8 x 8."""
    return float(np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX)).std())
