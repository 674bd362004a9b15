"""`hf-mim evaluate knn MODEL DATASET`: what the frozen features of an encoder are worth to a k-NN classifier."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
from transformers import AutoImageProcessor, AutoModel, BaseImageProcessor, PreTrainedModel

from ..data.sources import load_image_dataset, random_subset
from ..utils.files import replaced_file
from ..utils.loading import without_load_report
from .features import POOLINGS, extract_features
from .knn import knn_accuracy


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
    output_file: str | Path | None = None,
    progress: bool = True,
) -> dict:
    """Weighted k-NN accuracy of a frozen encoder on a labelled dataset (the protocol of iBOT's `eval_knn.py`).

    Both splits go through the image processor (no augmentation); weights and features are float32.

    Args:
        model: folder or Hub id, or a loaded encoder, which needs its `image_processor` given.
        dataset: for `hf_mim.data.sources.load_image_dataset`: a path that exists is its `data_dir`; anything else
            ("photo-tiles", the id of a Hub dataset), and whatever has a `dataset_config_name`, its `dataset_name`.
        image_processor: by default the one that lies beside the model.
        max_train_samples, max_test_samples: use a random subset of this size; always the same one.
        device: by default the GPU if there is one for a model that is loaded here, else where the model is.
        output_file: JSON file for the returned dictionary, written whole or not at all.

    Returns:
        `knn_{k}_top1` and `knn_{k}_top5` in percent for each k, and under `settings` what they were measured with.

    Raises:
        ValueError: for a model that cannot be loaded, lacks weights or has no image processor, for a split or labels
            that are missing, class names that differ between the splits, and all that `knn_accuracy` refuses.
    """
    name = model if isinstance(model, str | Path) else model.name_or_path or type(model).__name__
    if isinstance(model, str | Path):
        if str(model).startswith(("/", ".", "~")) and not Path(model).is_dir():
            raise ValueError(f"{model}: there is no such folder; MODEL is a folder or a model id of the Hub")
        image_processor = image_processor or _load_image_processor(model)
        model = _load_model(model, pooling)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    elif image_processor is None:
        raise ValueError(f"{name} is given as a loaded model: give its image_processor too")

    columns = {"image_column_name": image_column_name, "label_column_name": label_column_name}
    train = _load_split(dataset, train_split, max_train_samples, dataset_config_name, **columns)
    test = _load_split(dataset, test_split, max_test_samples, dataset_config_name, **columns)
    if _class_names(train) != _class_names(test):
        raise ValueError(f"{dataset}: the classes of the splits {train_split} and {test_split} differ")

    options = {"batch_size": batch_size, "num_workers": num_workers, "pooling": pooling, "progress": progress}
    train_features, train_labels = extract_features(model, train, image_processor, device=device, **options)
    test_features, test_labels = extract_features(model, test, image_processor, device=device, **options)
    accuracies = knn_accuracy(
        train_features.to(model.device),
        train_labels,
        test_features.to(model.device),
        test_labels,
        ks,
        temperature=temperature,
    )
    settings = {
        "model": str(name),
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
    """Run `evaluate_knn` with the arguments of a command line and print a table."""
    arguments = vars(_parser().parse_args(argv))
    result = evaluate_knn(arguments.pop("model"), arguments.pop("dataset"), ks=arguments.pop("k"), **arguments)
    settings = result["settings"]
    print(
        f"weighted k-NN of {settings['model']} on {settings['dataset']}: {settings['test_images']} images of "
        f"{settings['test_split']} against {settings['train_images']} of {settings['train_split']}"
    )
    print(f"{'k':>6} {'top-1 %':>8} {'top-5 %':>8}")
    for key, top1 in result.items():
        if key.endswith("_top1"):
            k = key.split("_")[1]
            print(f"{k:>6} {top1:8.2f} {result[f'knn_{k}_top5']:8.2f}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-mim evaluate knn", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder or Hub id of an encoder with its image processor; of a full iBOT model, its student is measured",
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder, Hub id, or photo-tiles")
    parser.add_argument("--train_split", default="train", help="the images that vote (default: %(default)s)")
    parser.add_argument("--test_split", default="test", help="the images to classify (default: %(default)s)")
    parser.add_argument("--dataset_config_name", help="configuration of a Hub dataset")
    parser.add_argument("--image_column_name", help="column of the images, where it has to be told")
    parser.add_argument("--label_column_name", help="column of the labels, where it has to be told")
    parser.add_argument("--k", type=int, nargs="+", default=list(KS), help="neighbours (default: 10 20 100 200)")
    parser.add_argument("--temperature", type=float, default=0.07, help="of the votes (default: %(default)s)")
    parser.add_argument("--pooling", choices=POOLINGS, default="auto", help="feature of an image (default: auto)")
    parser.add_argument("--batch_size", type=int, default=64, help="images per forward pass (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, default=0, help="loading processes (default: %(default)s)")
    parser.add_argument("--max_train_samples", type=int, help="use a random subset of the voting images")
    parser.add_argument("--max_test_samples", type=int, help="use a random subset of the test images")
    parser.add_argument("--device", help="cpu, cuda, mps, ... (default: cuda if there is one)")
    parser.add_argument("--output_file", help="write the figures and their settings to this JSON file")
    return parser


def _load_image_processor(source: str | Path) -> BaseImageProcessor:
    try:
        return AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: no image processor can be loaded ({_first_line(error)})") from error


def _load_model(source: str | Path, pooling: str) -> PreTrainedModel:
    try:
        with without_load_report():
            model, report = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: no model can be loaded ({_first_line(error)})") from error
    # transformers fills what a checkpoint lacks with random numbers; most encoders come without a pooler
    unused = ("mask_token",) if pooling == "pooler" else ("mask_token", "pooler")
    missing = sorted(key for key in report["missing_keys"] if not any(part in key for part in unused))
    if missing:
        raise ValueError(f"{source}: the checkpoint lacks {len(missing)} weights of the encoder, such as {missing[0]}")
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _load_split(
    dataset: str | Path, split: str, max_samples: int | None, config_name: str | None, **columns: str | None
) -> datasets.Dataset:
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"the number of samples must be at least 1, not {max_samples}")
    # a folder with configurations is a dataset of its own, described by its README
    if config_name is None and Path(dataset).expanduser().exists():
        loaded = load_image_dataset(data_dir=str(dataset), split=split, **columns)
    else:
        loaded = load_image_dataset(dataset_name=str(dataset), dataset_config_name=config_name, split=split, **columns)
    if "label" not in loaded.features:
        raise ValueError(
            f"{dataset}: the split {split} has no labels, which k-NN needs; sort the images into one folder per class "
            "or set label_column_name"
        )
    return random_subset(loaded, max_samples)


def _class_names(dataset: datasets.Dataset) -> list[str] | None:
    label = dataset.features["label"]
    return label.names if isinstance(label, datasets.ClassLabel) else None
