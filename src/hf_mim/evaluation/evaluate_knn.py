"""`hf-mim evaluate knn MODEL DATASET`: measure the frozen features of an encoder with a k-NN classifier."""

import json
import logging
from collections.abc import Sequence, Set
from functools import partial
from pathlib import Path

import datasets
import torch
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.images import keep_value_range, value_range_of
from ..data.labels import class_names, labeled_rows, same_classes
from ..data.source_report import look_at
from ..data.sources import load_image_dataset, random_subset
from ..utils.command_line import CommandParser, finite_number, positive_count, positive_number, worker_count
from ..utils.files import replaced_file
from ..utils.loading import UNUSED_WEIGHTS, find_source, load_model, load_model_and_processor
from .features import POOLINGS, extract_features
from .knn import check_votes, knn_accuracy


logger = logging.getLogger(__name__)

KS = (10, 20, 100, 200)


def evaluate_knn(
    model: str | Path | PreTrainedModel,
    dataset: str | Path,
    image_processor: BaseImageProcessor | None = None,
    *,
    train_split: str = "train",
    test_split: str = "test",
    dataset_config_name: str | None = None,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    ks: Sequence[int] = KS,
    temperature: float = 0.07,
    pooling: str = "auto",
    batch_size: int = 64,
    num_workers: int = 0,
    max_train_samples: int | None = None,
    max_test_samples: int | None = None,
    device: str | torch.device | None = None,
    value_range: Sequence[float] | None = None,
    outside_paths: bool = False,
    output_file: str | Path | None = None,
    progress: bool = True,
) -> dict:
    """
    Measure the weighted k-NN accuracy of a frozen encoder on a labeled dataset (protocol of iBOT's `eval_knn.py`).

    Both splits go through the image processor, without augmentation. Weights and features are float32.

    Args:
        model (`str`, `Path` or `PreTrainedModel`): Folder or Hub id, or a loaded encoder, which also needs
            `image_processor`.
        dataset (`str` or `Path`): A dataset for [`~hf_mim.data.sources.load_image_dataset`]. An existing path without
            `dataset_config_name` is its `data_dir`; anything else ("photo-tiles", the id of a Hub dataset) is its
            `dataset_name`.
        image_processor (`BaseImageProcessor`, *optional*): Defaults to the one saved with the model, on Pillow.
        train_split (`str`, defaults to `"train"`): Split whose images are the neighbors.
        test_split (`str`, defaults to `"test"`): Split whose images are classified.
        dataset_config_name, image_column_name, label_column_name (`str`, *optional*): For datasets that need them.
        ks (`Sequence[int]`, defaults to `(10, 20, 100, 200)`): Numbers of neighbors. A number above that of the images
            that vote is replaced by it.
        temperature (`float`, defaults to 0.07): Temperature of the votes.
        pooling (`str`, defaults to `"auto"`): As for [`extract_features`].
        batch_size (`int`, defaults to 64): Images per forward pass.
        num_workers (`int`, defaults to 0): Data-loading processes.
        max_train_samples, max_test_samples (`int`, *optional*): Use a random subset of this size, always the same one.
        device (`str` or `torch.device`, *optional*): For a model that is loaded here, defaults to the GPU if there is
            one; otherwise to where the model is.
        value_range (`Sequence[float]`, *optional*): Values of grayscale images with more than 8 bits that become black
            and white. Defaults to that of the image processor.
        outside_paths (`bool`, defaults to `False`): Allow tables to name files outside of their dataset's folder.
        output_file (`str` or `Path`, *optional*): JSON file for the returned dictionary, written atomically.
        progress (`bool`, defaults to `True`): Show progress bars.

    Returns:
        `dict`: `knn_{k}_top1` and `knn_{k}_top5` in percent for each k that was used, and under `settings` how they
            were measured.

    Raises:
        ValueError: If the model cannot be loaded, lacks weights or has no image processor; if a split or labels are
            missing, or the class names of the splits differ; and for everything that [`knn_accuracy`] refuses.
    """
    if isinstance(model, str | Path):
        name = str(model)
        encoder, image_processor = _load(model, image_processor, pooling)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    else:
        name, encoder = model.name_or_path or type(model).__name__, model
        if image_processor is None:
            raise ValueError(f"{name} is given as a loaded model: give its image_processor too")

    for count in (max_train_samples, max_test_samples):
        if count is not None and count < 1:
            raise ValueError(f"the number of samples must be at least 1, not {count}")
    notes: list[str] = []
    load_split = partial(
        _load_split,
        dataset,
        dataset_config_name=dataset_config_name,
        image_column_name=image_column_name,
        label_column_name=label_column_name,
        outside_paths=outside_paths,
        notes=notes,
    )
    check_votes(ks, temperature)
    train = load_split(train_split)
    test = load_split(test_split, known_classes=class_names(train))
    train, test, line = same_classes(train, test, (f"the images of {train_split}", f"images of {test_split}"))
    if line is not None:
        notes.append(line)
    keep_value_range(image_processor, value_range)
    notes += look_at(train, value_range_of(image_processor))
    for note in dict.fromkeys(notes):
        logger.info(note)
    train, test = random_subset(train, max_train_samples), random_subset(test, max_test_samples)

    extract = partial(
        extract_features,
        encoder,
        image_processor=image_processor,
        batch_size=batch_size,
        num_workers=num_workers,
        pooling=pooling,
        device=device,
        progress=progress,
    )
    (train_features, train_labels), (test_features, test_labels) = extract(train), extract(test)
    assert train_labels is not None and test_labels is not None
    accuracies = knn_accuracy(
        train_features.to(encoder.device),
        train_labels,
        test_features.to(encoder.device),
        test_labels,
        ks,
        temperature=temperature,
    )
    settings = {
        "model": name,
        "dataset": str(dataset),
        "dataset_config_name": dataset_config_name,
        "train_split": train_split,
        "test_split": test_split,
        "train_images": len(train_features),
        "test_images": len(test_features),
        "classes_in_train": len(train_labels.unique()),
        "feature_size": train_features.shape[1],
        "pooling": pooling,
        "temperature": temperature,
    }
    result = {**accuracies, "settings": settings}
    if output_file is not None:
        with replaced_file(output_file) as file:
            file.write_text(json.dumps(result, indent=2) + "\n")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Run [`evaluate_knn`] with command-line arguments and print a table."""
    arguments = vars(_parser().parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("httpx", "httpx2", "fsspec", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    ks = arguments.pop("k")
    result = evaluate_knn(arguments.pop("model"), arguments.pop("dataset"), ks=ks, **arguments)
    settings = result["settings"]
    print(
        f"weighted k-NN of {settings['model']} on {settings['dataset']}: {settings['test_images']} images of "
        f"{settings['test_split']} against {settings['train_images']} of {settings['train_split']}"
    )
    too_many = [k for k in ks if k > settings["train_images"]]
    if too_many:
        print(
            f"k = {', '.join(map(str, too_many))} is more than there are images of {settings['train_split']}: all "
            f"{settings['train_images']} vote instead"
        )
    print(f"{'k':>6} {'top-1 %':>8} {'top-5 %':>8}")
    for key, top1 in result.items():
        if key.endswith("_top1"):
            k = key.split("_")[1]
            print(f"{k:>6} {top1:8.2f} {result[f'knn_{k}_top5']:8.2f}")


def _parser() -> CommandParser:
    parser = CommandParser(prog="hf-mim evaluate knn", description=__doc__)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder or Hub id of an encoder with its image processor; of a full iBOT model, the student is measured",
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder, Hub id, or photo-tiles")
    parser.add_argument("--train_split", default="train", help="the images that vote (default: %(default)s)")
    parser.add_argument("--test_split", default="test", help="the images to classify (default: %(default)s)")
    parser.add_argument("--dataset_config_name", help="configuration of a Hub dataset")
    parser.add_argument("--image_column_name", help="column of the images, where it cannot be guessed")
    parser.add_argument("--label_column_name", help="column of the labels, where it cannot be guessed")
    parser.add_argument(
        "--k", type=positive_count, nargs="+", default=list(KS), help="numbers of neighbors (default: 10 20 100 200)"
    )
    parser.add_argument(
        "--temperature", type=positive_number, default=0.07, help="temperature of the votes (default: %(default)s)"
    )
    parser.add_argument(
        "--pooling", choices=POOLINGS, default="auto", help="how the output becomes one feature (default: auto)"
    )
    parser.add_argument(
        "--batch_size", type=positive_count, default=64, help="images per forward pass (default: %(default)s)"
    )
    parser.add_argument(
        "--num_workers", type=worker_count, default=0, help="data-loading processes (default: %(default)s)"
    )
    parser.add_argument("--max_train_samples", type=positive_count, help="use a random subset of the voting images")
    parser.add_argument("--max_test_samples", type=positive_count, help="use a random subset of the test images")
    parser.add_argument("--device", help="cpu, cuda, mps, ... (default: cuda if there is one)")
    parser.add_argument(
        "--value_range",
        type=finite_number,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values of grayscale images with more than 8 bits that become black and white (default: the model's)",
    )
    parser.add_argument(
        "--outside_paths", action="store_true", help="allow tables to name files outside of their dataset's folder"
    )
    parser.add_argument("--output_file", help="write the accuracies and settings to this JSON file")
    return parser


def _load(
    source: str | Path, image_processor: BaseImageProcessor | None, pooling: str
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    unused = ("mask_token",) if pooling == "pooler" else UNUSED_WEIGHTS
    if image_processor is None:
        return load_model_and_processor(source, unused=unused, dtype=torch.float32)
    return load_model(find_source(source), unused=unused, dtype=torch.float32), image_processor


def _load_split(
    dataset: str | Path,
    split: str,
    dataset_config_name: str | None,
    image_column_name: str | None,
    label_column_name: str | None,
    outside_paths: bool,
    notes: list[str],
    known_classes: Set[str] = frozenset(),
) -> datasets.Dataset:
    # A folder with a configuration name is a dataset repository, described by its README.
    is_images = dataset_config_name is None and Path(dataset).expanduser().exists()
    loaded = load_image_dataset(
        dataset_name=None if is_images else str(dataset),
        dataset_config_name=dataset_config_name,
        data_dir=str(dataset) if is_images else None,
        split=split,
        image_column_name=image_column_name,
        label_column_name=label_column_name,
        outside_paths=outside_paths,
        known_classes=known_classes,
        notes=notes,
    )
    if "label" not in loaded.features:
        reasons = [note for note in notes if "label" in note]
        raise ValueError(
            f"{dataset}: the split {split} has no labels, which k-NN needs{f' ({reasons[-1]})' if reasons else ''}; "
            "sort the images into one folder per class or name the column with --label_column_name"
        )
    labeled, missing = labeled_rows(loaded)
    if missing:
        notes.append(f"{missing} images of {split} have no label and are left out")
    if not len(labeled):
        raise ValueError(f"{dataset}: no image of the split {split} has a label, which k-NN needs")
    return labeled
