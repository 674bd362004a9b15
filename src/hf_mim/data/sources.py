"""Load images from a folder of files or shards, a dataset of the Hub, or the built-in photo tiles."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_dataset

from .images import IMAGE_EXTENSIONS
from .photo_tiles import load_photo_tiles


# Word in a folder or file name -> the split it stands for.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "images", "picture", "photo")
LABEL_COLUMNS = ("label", "labels", "cls")
FOLDER_BUILDERS = ("imagefolder", "parquet", "webdataset")

# Number of shards of a folder that is read as a stream; each data-loading process takes its share of them.
STREAM_SHARDS = 64


def load_image_dataset(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    data_dir: str | None = None,
    split: str = "train",
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    streaming: bool = False,
    cache_dir: str | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> Dataset | IterableDataset:
    """
    Load one split of an image dataset.

    With `data_dir` alone:

    - A folder of image files of any depth. If all of them are in sub-folders, the first level of sub-folders gives the
      classes, numbered in alphabetical order over all splits, so that the numbers agree between splits.
    - A folder, a file or a glob of `*.parquet` files, or of WebDataset `*.tar` shards.

    Sub-folders named like a split (`train`, `val`, `test` ...) are splits. Shards may instead have the split in their
    file names (`train-00000-of-00001.parquet`). Without any name of a split, everything is "train". Names that start
    with a dot are skipped.

    With `dataset_name`: "photo-tiles" ([`~hf_mim.data.photo_tiles`]), or anything that `datasets.load_dataset`
    accepts: a dataset of the Hub, a local dataset folder, or "imagefolder", "parquet" or "webdataset" together with
    `data_dir` (for example for a folder with a `metadata.csv`).

    Args:
        dataset_name (`str`, *optional*): See above.
        dataset_config_name (`str`, *optional*): Configuration of a Hub dataset.
        data_dir (`str`, *optional*): See above.
        split (`str`, defaults to `"train"`): Name of the split. "validation" also matches `val`, `valid` and `dev` in
            folder and file names, and so on.
        image_column_name (`str`, *optional*): Defaults to the only column of images, or else the one with a usual
            name.
        label_column_name (`str`, *optional*): Defaults to an integer column `label`, `labels` or `cls`, or else the
            only `ClassLabel`.
        streaming (`bool`, defaults to `False`): Read while iterating, instead of preparing the whole dataset first.
        cache_dir, token, revision (`str`, *optional*): As for `datasets.load_dataset`.

    Returns:
        `Dataset` or `IterableDataset`: Has the column `image`, which holds {"bytes", "path"} for `decode_image`, and,
        if there is one, `label` (`ClassLabel` or integers).

    Raises:
        FileNotFoundError: If the folder or file does not exist.
        ValueError: If there are no images, the split or column is unknown (the message lists the known ones), or
            files of several kinds are mixed.
    """
    if dataset_name == "photo-tiles":
        dataset = _stream(load_photo_tiles(split)) if streaming else load_photo_tiles(split)
    elif dataset_name is not None:
        if dataset_name in FOLDER_BUILDERS and data_dir is None:
            raise ValueError(f"dataset_name={dataset_name!r} reads a folder: give data_dir as well")
        if dataset_name.startswith(("/", ".", "~")) and not Path(dataset_name).expanduser().exists():
            raise FileNotFoundError(f"dataset_name {dataset_name} does not exist")
        dataset = _prepare(
            data_dir or dataset_name,
            os.path.expanduser(dataset_name),
            dataset_config_name,
            data_dir=data_dir,
            split=split,
            streaming=streaming,
            cache_dir=cache_dir,
            token=token,
            revision=revision,
        )
    elif data_dir is not None:
        dataset = _load_files(data_dir, split, streaming, cache_dir, image_column_name, label_column_name)
    else:
        raise ValueError("no images given: set data_dir (a folder) or dataset_name (a Hub dataset, or photo-tiles)")

    dataset = _keep_image_and_label(dataset, image_column_name, label_column_name)
    # Streamed folders and archives of the Hub yield URLs instead of bytes.
    return dataset.map(partial(_fetch, token=token), features=dataset.features) if streaming else dataset


def random_subset(dataset: Dataset, count: int | None, seed: int = 0) -> Dataset:
    """Return `count` random rows, or all if there are no more. The first rows would be of few classes only."""
    if count is None or count >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(count))


# --------------------------------------------------------------------------- files and folders


def _load_files(
    data_dir: str,
    split: str,
    streaming: bool,
    cache_dir: str | None,
    image_column: str | None,
    label_column: str | None,
) -> Dataset | IterableDataset:
    path = Path(os.path.abspath(Path(data_dir).expanduser()))
    if path.is_dir():
        split_folders = _split_folders(path, split)
        folder = _pick(split_folders, split, data_dir) if split_folders else path
        files = list(_walk(folder))
    else:
        split_folders, folder = {}, None
        files = [str(path)] if path.exists() else sorted(glob.glob(str(path), recursive=True))
        if not files:
            raise FileNotFoundError(f"{data_dir} does not exist")

    kinds: dict[str, list[str]] = {}
    for file in files:
        if (kind := _kind(file)) is not None:
            kinds.setdefault(kind, []).append(file)
    if not kinds:
        raise ValueError(f"no images, parquet files or tar shards in {folder or data_dir}")
    if len(kinds) > 1:
        counts = ", ".join(f"{len(found)} {kind}" for kind, found in kinds.items())
        raise ValueError(
            f"{folder or data_dir} mixes files of several kinds ({counts}): keep them in separate folders"
        )
    [(kind, files)] = kinds.items()

    if not split_folders:
        by_split = {"train": files} if kind == "image" else _group_by_split(files, split)
        files = _pick(by_split, split, data_dir)
    if kind == "image":
        dataset = _image_files(files, folder, list(split_folders.values()))
        return _stream(dataset) if streaming else dataset
    builder = {"parquet": "parquet", "tar": "webdataset"}[kind]
    # These are names, not patterns, even if they contain brackets.
    files = [glob.escape(file) for file in files]
    prepare = partial(_prepare, data_dir, builder, data_files=files, split="train", cache_dir=cache_dir)
    if not streaming:
        # Preparing large shards takes long; a stream reports wrong columns at once.
        _keep_image_and_label(prepare(streaming=True), image_column, label_column)
    return prepare(streaming=streaming)


def _prepare(source: str, name: str, config: str | None = None, **options: Any) -> Dataset | IterableDataset:
    try:
        return load_dataset(name, config, **options)
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise ValueError(f"split {options['split']!r} of {source} is empty") from error


def _image_files(files: list[str], folder: Path | None, split_folders: Sequence[Path]) -> Dataset:
    """Return a dataset of image files, with their classes if their folder is sorted into classes."""
    try:
        columns = {"image": pa.array(files)}
    except UnicodeEncodeError as error:
        name = next(file for file in files if any("\ud800" <= letter <= "\udfff" for letter in file))
        raise ValueError(f"{ascii(name)}: file names must be UTF-8, rename it") from error
    features = {"image": Image(decode=False)}
    if folder is not None and _class_names(folder):
        names = sorted({name for part in split_folders or [folder] for name in _class_names(part)})
        number = {name: i for i, name in enumerate(names)}
        start = len(os.path.join(folder, ""))
        columns["label"] = pa.array([number[file[start:].split(os.sep)[0]] for file in files])
        features["label"] = ClassLabel(names=names)
    return Dataset.from_dict(columns, features=Features(features))


def _class_names(folder: Path) -> set[str]:
    """Return the names of sub-folders with images, or none if there are also images beside them."""
    entries = list(_visible(folder))
    if any(_kind(entry.name) == "image" and not entry.is_dir() for entry in entries):
        return set()
    folders = (entry for entry in entries if entry.is_dir())
    return {entry.name for entry in folders if any(_kind(file) == "image" for file in _walk(Path(entry.path)))}


def _split_folders(folder: Path, split: str) -> dict[str, Path]:
    """Return the sub-folders that are splits, by the name of the split."""
    found: dict[str, Path] = {}
    for entry in _visible(folder):
        name = split if entry.name == split else SPLIT_WORDS.get(entry.name.lower())
        if entry.is_dir() and name is not None and (entry.name == split or name not in found):
            found[name] = Path(entry.path)
    return found


def _group_by_split(files: list[str], split: str) -> dict[str, list[str]]:
    """Group shards by the split in their names; if no shard names a split, all are "train"."""
    groups: dict[str, list[str]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", Path(file).name.lower())
        named = [SPLIT_WORDS.get(word, word) for word in words if word in SPLIT_WORDS or word == split]
        groups.setdefault(named[0] if named else "", []).append(file)
    unnamed = groups.pop("", [])
    if unnamed and groups:
        raise ValueError(f"{unnamed[0]} names no split, but other files beside it do ({', '.join(sorted(groups))})")
    return groups or {"train": unnamed}


def _pick(splits: dict[str, Any], split: str, source: str) -> Any:
    for name in (split, SPLIT_WORDS.get(split.lower())):
        if name in splits:
            return splits[name]
    raise ValueError(f"{source} has no split {split!r}, only {', '.join(sorted(splits))}")


def _walk(folder: Path, parents: tuple[Path, ...] = ()) -> Iterator[str]:
    """Yield all files below a folder in the order of their names; links are followed, but not in circles."""
    real = folder.resolve()
    if real in parents:
        return
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _walk(Path(entry.path), (*parents, real))
        else:
            yield entry.path


def _visible(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _kind(file: str) -> str | None:
    extension = os.path.splitext(file)[1].lower()
    if extension in IMAGE_EXTENSIONS:
        return "image"
    return {".parquet": "parquet", ".tar": "tar"}.get(extension)


# --------------------------------------------------------------------------- columns


def _keep_image_and_label(
    dataset: Dataset | IterableDataset, image_column: str | None, label_column: str | None
) -> Dataset | IterableDataset:
    if dataset.features is None:
        dataset = dataset._resolve_features()
    features = dataset.features
    image_column = _find_image_column(features, image_column)
    label_column = _find_label_column(features, label_column)
    dataset = dataset.select_columns([column for column in (image_column, label_column) if column is not None])
    names = {image_column: "image", label_column: "label"}
    renamed = {old: new for old, new in names.items() if old is not None and old != new}
    if renamed:
        dataset = dataset.rename_columns(renamed)
    return dataset.cast_column("image", Image(decode=False))


def _find_image_column(features: Features, wanted: str | None) -> str:
    _check_exists(features, "image_column_name", wanted)
    if wanted is not None:
        if not _can_hold_images(features[wanted]):
            raise ValueError(f"image_column_name {wanted!r} holds {features[wanted]}, not images")
        return wanted
    candidates = [name for name, feature in features.items() if isinstance(feature, Image)]
    if len(candidates) == 1:
        return candidates[0]
    candidates = candidates or [name for name, feature in features.items() if _can_hold_images(feature)]
    for name in IMAGE_COLUMNS:
        if name in candidates:
            return name
    raise ValueError(f"cannot guess which column has the images: set image_column_name to one of {list(features)}")


def _find_label_column(features: Features, wanted: str | None) -> str | None:
    _check_exists(features, "label_column_name", wanted)
    if wanted is not None:
        if not _is_class(features[wanted]):
            raise ValueError(f"label_column_name {wanted!r} holds {features[wanted]}, not the numbers of classes")
        return wanted
    for name in LABEL_COLUMNS:
        if name in features and _is_class(features[name]):
            return name
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    return classes[0] if len(classes) == 1 else None


def _check_exists(features: Features, option: str, column: str | None) -> None:
    if column is not None and column not in features:
        raise ValueError(f"{option} {column!r} does not exist; the columns are {list(features)}")


def _can_hold_images(feature: Any) -> bool:
    """Return True for encoded bytes, paths of files, or {"bytes", "path"}."""
    if isinstance(feature, Value):
        return feature.dtype in ("binary", "large_binary", "string", "large_string")
    return isinstance(feature, Image) or (isinstance(feature, dict) and {"bytes", "path"} == set(feature))


def _is_class(feature: Any) -> bool:
    return isinstance(feature, ClassLabel) or (
        isinstance(feature, Value) and feature.dtype.startswith(("int", "uint"))
    )


# --------------------------------------------------------------------------- streams


def _stream(dataset: Dataset) -> IterableDataset:
    return dataset.to_iterable_dataset(num_shards=min(len(dataset), STREAM_SHARDS))


def _fetch(example: dict[str, Any], token: str | None) -> dict[str, Any]:
    image = example["image"]
    if image is None or image["bytes"] is not None or "://" not in (image["path"] or ""):
        return example
    options = {"hf": {"token": token}} if token else {}
    with fsspec.open(image["path"], "rb", **options) as file:
        return {**example, "image": {"bytes": file.read(), "path": image["path"]}}
