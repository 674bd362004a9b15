"""Load images from a folder of files or shards, a dataset of the Hub, or the built-in photo tiles."""

import dataclasses
import glob
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..utils.console import first_line
from ..utils.loading import check_on_hub, looks_like_path
from .folders import (
    SPLIT_WORDS,
    Files,
    ascii_path,
    class_folders,
    class_of,
    find_files,
    group_by_split,
    split_folders,
)
from .labels import LABEL_COLUMNS, json_labels, label_problem, text_labels, to_classes
from .metadata import read_metadata
from .photo_tiles import load_photo_tiles
from .table_paths import AllowedPaths, fetch, resolve_paths
from .tars import load_tars


IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "images", "picture", "photo")
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
    outside_paths: bool = False,
    notes: list[str] | None = None,
) -> Dataset | IterableDataset:
    """
    Load one split of an image dataset.

    With `data_dir` alone:

    - A folder of image files of any depth. The first level of sub-folders gives the classes, numbered in alphabetical
      order over all splits, so that the numbers agree between splits. Images beside the sub-folders have no class. A
      `metadata.csv` or `metadata.jsonl` in the folder, with the column `file_name`, may give labels instead.
    - A folder, a file or a glob of `*.parquet` files, or of WebDataset `*.tar` shards.

    Sub-folders are splits if all of them are named like one (`train`, `val`, `test` ...). Shards may instead have the
    split in their file names (`train-00000-of-00001.parquet`). Without any name of a split, everything is "train".
    Names that start with a dot are skipped.

    With `dataset_name`: "photo-tiles" ([`~hf_mim.data.photo_tiles`]), or anything that `datasets.load_dataset`
    accepts: a dataset of the Hub, a local dataset folder, or "imagefolder", "parquet" or "webdataset" together with
    `data_dir`.

    Args:
        dataset_name (`str`, *optional*): See above.
        dataset_config_name (`str`, *optional*): Configuration of a Hub dataset.
        data_dir (`str`, *optional*): See above.
        split (`str`, defaults to `"train"`): Name of the split. "validation" also matches `val`, `valid` and `dev` in
            folder and file names, and so on.
        image_column_name (`str`, *optional*): Defaults to the only column of images, or else the one with a usual
            name.
        label_column_name (`str`, *optional*): Column of whole numbers, words or booleans, a `ClassLabel`, or a key in
            the `.json` of a tar. Defaults to `label`, `labels`, `cls`, `class` or `category`, or else the only
            `ClassLabel`.
        streaming (`bool`, defaults to `False`): Read while iterating, instead of preparing the whole dataset first.
            Words are no labels of a stream, because nobody knows all of them.
        cache_dir, token, revision (`str`, *optional*): As for `datasets.load_dataset`.
        outside_paths (`bool`, defaults to `False`): Allow tables to name files outside of their dataset's folder.
        notes (`list[str]`, *optional*): Lines about what is left out are appended, and where the labels come from.

    Returns:
        `Dataset` or `IterableDataset`: Has the column `image`, which holds {"bytes", "path"} for `decode_image`, and,
        if there is one, `label` (`ClassLabel` or integers).

    Raises:
        FileNotFoundError: If the folder or file does not exist.
        ValueError: If there are no images, the split or column is unknown (the message lists the known ones), files
            of several kinds are mixed or damaged, or a table names files outside of its folder.
    """
    notes = [] if notes is None else notes
    if dataset_name == "webdataset" and data_dir is not None and os.path.exists(os.path.expanduser(data_dir)):
        dataset_name = None
    paths = None
    if dataset_name == "photo-tiles":
        dataset = _stream(load_photo_tiles(split)) if streaming else load_photo_tiles(split)
    elif dataset_name is not None:
        if dataset_name in FOLDER_BUILDERS and data_dir is None:
            raise ValueError(f"dataset_name={dataset_name!r} reads a folder: give data_dir as well")
        name = os.path.expanduser(dataset_name)
        if not os.path.exists(name) and dataset_name not in FOLDER_BUILDERS:
            if looks_like_path(name):
                raise FileNotFoundError(f"dataset_name {dataset_name} does not exist")
            check_on_hub(name, "dataset", token)
        local = name if os.path.exists(name) else data_dir if dataset_name in FOLDER_BUILDERS else None
        paths = AllowedPaths.of(local, dataset_name, cache_dir, outside_paths)
        dataset = _prepare(
            data_dir or dataset_name,
            name,
            dataset_config_name,
            data_dir=data_dir,
            split=split,
            streaming=streaming,
            cache_dir=cache_dir,
            token=token,
            revision=revision,
        )
    elif data_dir is not None:
        paths = AllowedPaths.of(data_dir, None, cache_dir, outside_paths)
        dataset = _load_files(data_dir, split, streaming, cache_dir, image_column_name, label_column_name, notes)
    else:
        raise ValueError("no images given: set data_dir (a folder) or dataset_name (a Hub dataset, or photo-tiles)")

    if dataset.builder_name in (None, "imagefolder"):
        # The paths come from a listing of the files, not from a table.
        paths = paths and dataclasses.replace(paths, everything=True)
    source = data_dir or dataset_name or ""
    dataset = _keep_image_and_label(dataset, image_column_name, label_column_name, source, notes)
    if isinstance(dataset, Dataset):
        return dataset if paths is None else resolve_paths(dataset, paths, source)
    # Streamed folders and archives of the Hub yield URLs instead of bytes.
    return dataset.map(partial(fetch, paths=paths, token=token), features=dataset.features)


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
    notes: list[str],
) -> Dataset | IterableDataset:
    path = os.path.abspath(os.path.expanduser(data_dir))
    splits: dict[str, str] = {}
    if os.path.isdir(path):
        found = find_files(path)
        notes += found.left_out()
        splits, lines = split_folders(found, split)
        notes += lines
        files = found.inside(_pick(splits, split, data_dir)) if splits else found
    else:
        names = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        if not names:
            raise FileNotFoundError(f"{data_dir} does not exist")
        files = found = Files(os.path.commonpath(list(map(os.path.dirname, names))))
        for name in names:
            if os.path.isfile(name):
                found.add(name)
            elif not os.path.isdir(name):
                found.special.append(name)
        notes += found.left_out()

    if not files.data:
        raise ValueError(_no_images(files, found, data_dir))
    if len(files.data) > 1:
        counts = ", ".join(f"{len(members)} {kind}" for kind, members in files.data.items())
        raise ValueError(f"{files.root} mixes files of several kinds ({counts}): keep them in separate folders")
    [(kind, members)] = files.data.items()
    if not splits:
        members = _pick({"train": members} if kind == "image" else group_by_split(members, split), split, data_dir)
    if kind == "image":
        parts = [found.inside(folder) for folder in splits.values()] or [found]
        dataset = _image_files(members, files, parts, label_column, notes)
        return _stream(dataset) if streaming else dataset
    if kind == "tar":
        return _load_tars(members, streaming, cache_dir)
    # These are names, not patterns, even if they contain brackets.
    members = [glob.escape(file) for file in members]
    prepare = partial(_prepare, data_dir, "parquet", data_files=members, split="train", cache_dir=cache_dir)
    if not streaming:
        # Preparing large shards takes long; a stream reports wrong columns at once.
        features = _features(prepare(streaming=True))
        _find_image_column(features, image_column)
        _find_label_column(features, label_column, [])
    return prepare(streaming=streaming)


def _no_images(files: Files, found: Files, data_dir: str) -> str:
    message = f"no images, parquet files or tar shards in {files.root if os.path.isdir(data_dir) else data_dir}"
    reasons = found.left_out()
    return message + (f" ({'; '.join(reasons)})" if reasons else "")


def _load_tars(members: list[str], streaming: bool, cache_dir: str | None) -> Dataset | IterableDataset:
    try:
        return load_tars(members, streaming, cache_dir)
    except DatasetGenerationError as error:
        raise ValueError(first_line(error.__cause__ or error)) from error


def _prepare(source: str, name: str, config: str | None = None, **options: Any) -> Dataset | IterableDataset:
    try:
        return load_dataset(name, config, **options)
    except DatasetGenerationError as error:
        raise ValueError(f"{source} cannot be read: {first_line(error.__cause__ or error)}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{source} cannot be read: {first_line(error)}") from error
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise ValueError(f"split {options['split']!r} of {source} is empty") from error


def _image_files(
    members: list[str], files: Files, parts: Sequence[Files], label_column: str | None, notes: list[str]
) -> Dataset:
    """Return a dataset of image files with the columns of their metadata, or with the classes of their folders."""
    try:
        columns = {"image": pa.array(members)}
    except UnicodeEncodeError as error:
        name = next(file for file in members if any("\ud800" <= letter <= "\udfff" for letter in file))
        raise ValueError(f"{ascii(name)}: file names must be UTF-8, rename it") from error
    features: dict[str, Any] = {"image": Image(decode=False)}
    dataset = Dataset.from_dict(columns, features=Features(features))
    if files.metadata:
        for name, values in read_metadata(files.metadata, members, notes).items():
            if name != "image":
                dataset = dataset.add_column(name, values)
        if label_column is not None or any(name in dataset.column_names for name in LABEL_COLUMNS):
            return dataset
    if label_column not in (None, "label") or not class_folders(files):
        return dataset
    names = sorted({name for part in parts for name in class_folders(part)})
    number = {name: index for index, name in enumerate(names)}
    classes = [class_of(file, files.root) for file in members]
    beside = [file for file, name in zip(members, classes, strict=True) if name is None]
    if beside:
        notes.append(
            f"{len(beside)} images beside the folders of classes have no class, such as {ascii_path(beside[0])}"
        )
    values = pa.array([None if name is None else number[name] for name in classes], pa.int64())
    if "label" in dataset.column_names:
        dataset = dataset.remove_columns("label")
    return dataset.add_column("label", values, feature=ClassLabel(names=names))


def _pick(splits: dict[str, Any], split: str, source: str) -> Any:
    for name in (split, SPLIT_WORDS.get(split.lower())):
        if name in splits:
            return splits[name]
    raise ValueError(f"{source} has no split {split!r}, only {', '.join(sorted(splits))}")


# --------------------------------------------------------------------------- columns


def _keep_image_and_label(
    dataset: Dataset | IterableDataset,
    image_column: str | None,
    label_column: str | None,
    source: str,
    notes: list[str],
) -> Dataset | IterableDataset:
    features = _features(dataset)
    wanted = label_column
    image_column = _find_image_column(features, image_column)
    if isinstance(dataset, Dataset) and "json" in features and (wanted is None or wanted not in features):
        labels = json_labels(dataset, "json", wanted, source)
        if labels is not None and (wanted is not None or not any(name in features for name in LABEL_COLUMNS)):
            dataset, wanted = dataset.remove_columns("json"), "json"
            dataset = dataset.add_column("json", text_labels(labels))
            features = dataset.features
    label_column = _find_label_column(features, wanted, notes)
    if label_column is not None and isinstance(dataset, Dataset):
        dataset, problem = to_classes(dataset, label_column, wanted is not None)
        if problem is not None:
            if wanted is not None:
                raise ValueError(f"{source}: label_column_name {label_column!r} cannot be the labels: {problem}")
            notes.append(f"column {label_column!r} is not taken for labels: {problem}")
            label_column = None
    elif label_column is not None:
        dataset, label_column = _stream_labels(dataset, label_column, notes)
    dataset = dataset.select_columns([column for column in (image_column, label_column) if column is not None])
    names = {image_column: "image", label_column: "label"}
    renamed = {old: new for old, new in names.items() if old is not None and old != new}
    if renamed:
        dataset = dataset.rename_columns(renamed)
    return dataset.cast_column("image", Image(decode=False))


def _stream_labels(dataset: IterableDataset, column: str, notes: list[str]) -> tuple[IterableDataset, str | None]:
    """Return a stream with a column of whole numbers or a `ClassLabel`; without the column if it has neither."""
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel) or feature.dtype.startswith(("int", "uint")):
        return dataset, column
    first = next(iter(dataset.select_columns([column])), {column: None})[column]
    if not (isinstance(first, str) and first.strip().isdecimal()):
        notes.append(f"column {column!r} has words, of which a stream makes no labels")
        return dataset, None
    features = Features({**dataset.features, column: Value("int64")})
    return dataset.map(partial(_to_number, column=column), features=features), column


def _to_number(example: dict[str, Any], column: str) -> dict[str, Any]:
    text = example[column]
    return {**example, column: None if text is None else int(text)}


def _features(dataset: Dataset | IterableDataset) -> Features:
    return dataset.features if dataset.features is not None else dataset._resolve_features().features


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


def _find_label_column(features: Features, wanted: str | None, notes: list[str]) -> str | None:
    _check_exists(features, "label_column_name", wanted)
    if wanted is not None:
        problem = label_problem(features[wanted])
        if problem is not None:
            raise ValueError(f"label_column_name {wanted!r} cannot be the labels: {problem}")
        return wanted
    for name in LABEL_COLUMNS:
        if name in features:
            problem = label_problem(features[name])
            if problem is None:
                return name
            notes.append(f"column {name!r} is not taken for labels: {problem}")
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(classes) > 1:
        notes.append(f"no labels: {', '.join(classes)} might be them; label_column_name chooses one")
    return classes[0] if len(classes) == 1 else None


def _check_exists(features: Features, option: str, column: str | None) -> None:
    if column is not None and column not in features:
        raise ValueError(f"{option} {column!r} does not exist; the columns are {list(features)}")


def _can_hold_images(feature: Any) -> bool:
    """Return True for encoded bytes, paths of files, or {"bytes", "path"}."""
    if isinstance(feature, Value):
        return feature.dtype in ("binary", "large_binary", "string", "large_string")
    return isinstance(feature, Image) or (isinstance(feature, dict) and {"bytes", "path"} == set(feature))


def _stream(dataset: Dataset) -> IterableDataset:
    return dataset.to_iterable_dataset(num_shards=min(len(dataset), STREAM_SHARDS))
