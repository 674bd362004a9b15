"""Load images from a folder of files or shards, a dataset of the Hub, or the built-in photo tiles."""

import dataclasses
import glob
import logging
import os
from collections.abc import Sequence, Set
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..utils.console import first_line
from ..utils.loading import check_on_hub, looks_like_path
from .columns import features_of, find_image_column, find_label_column, keep_image_and_label
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
from .labels import LABEL_COLUMNS, some
from .metadata import read_metadata
from .photo_tiles import load_photo_tiles
from .table_paths import AllowedPaths, fetch, resolve_paths
from .tars import load_tars


FOLDER_BUILDERS = ("imagefolder", "parquet", "webdataset")

# Number of shards of a folder that is read as a stream; each data-loading process takes its share of them.
STREAM_SHARDS = 64
# Parquet files of fewer bytes may have no rows.
MAX_HEADER = 2**17


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
    known_classes: Set[str] = frozenset(),
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
        known_classes (`Set[str]`): Words that are classes of another split. A column of texts that are all different
            is taken for labels if it holds one of them.
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
    if data_dir is not None and _is_read_here(dataset_name, os.path.expanduser(data_dir), split):
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

    if dataset.builder_name is None:
        paths = None  # the paths come from a listing of the files, not from a table
    elif dataset.builder_name == "imagefolder":
        paths = paths and dataclasses.replace(paths, everything=True)
    source = data_dir or dataset_name or ""
    dataset = keep_image_and_label(dataset, image_column_name, label_column_name, known_classes, source, notes)
    if isinstance(dataset, Dataset):
        return dataset if paths is None else resolve_paths(dataset, paths, source)
    # Streamed folders and archives of the Hub yield URLs instead of bytes.
    return dataset.map(partial(fetch, paths=paths, token=token), features=dataset.features)


def random_subset(dataset: Dataset, count: int | None, seed: int = 0) -> Dataset:
    """Return `count` random rows, or all if there are no more. The first rows would be of few classes only."""
    if count is None or count >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(count))


def _is_read_here(dataset_name: str | None, path: str, split: str) -> bool:
    """Return whether a local folder that is given with the name of a loader of `datasets` is read without it."""
    if dataset_name == "imagefolder":
        # That loader reads archives and parts of splits, too; it does not say what it leaves out.
        return os.path.isdir(path) and split.isidentifier() and "image" in find_files(path).data
    return dataset_name == "webdataset" and os.path.exists(path)


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
        # A metadata file beside the folders of splits describes all of them.
        files.metadata = [file for file in found.metadata if os.path.dirname(file) == path or file in files.metadata]
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
        known = set(found.data["image"])
        dataset = _image_files(members, files, parts, known, label_column, notes)
        return _stream(dataset) if streaming else dataset
    if kind == "tar":
        return _load_tars(members, image_column, streaming, cache_dir, notes)
    empty = [file for file in members if _has_no_rows(file)]
    if len(empty) == len(members):
        raise ValueError(f"split {split!r} of {data_dir} is empty: its parquet files have no rows")
    if empty:
        notes.append(f"left out: {len(empty)} parquet files without rows, such as {ascii_path(empty[0])}")
    # These are names, not patterns, even if they contain brackets.
    members = [glob.escape(file) for file in members if file not in empty]
    prepare = partial(_prepare, data_dir, "parquet", data_files=members, split="train", cache_dir=cache_dir)
    if not streaming:
        # Preparing large shards takes long; a stream reports wrong columns at once.
        features = features_of(prepare(streaming=True))
        find_label_column(features, label_column, find_image_column(features, image_column), [])
    return prepare(streaming=streaming)


def _has_no_rows(file: str) -> bool:
    """Return whether a parquet file is only a header, with which the loader of `datasets` fails."""
    try:
        return os.path.getsize(file) < MAX_HEADER and pq.read_metadata(file).num_rows == 0
    except (OSError, pa.ArrowException):
        return False  # the loader says what is wrong with it


def _no_images(files: Files, found: Files, data_dir: str) -> str:
    message = f"no images, parquet files or tar shards in {files.root if os.path.isdir(data_dir) else data_dir}"
    reasons = found.left_out()
    return message + (f" ({'; '.join(reasons)})" if reasons else "")


def _load_tars(
    members: list[str], image_field: str | None, streaming: bool, cache_dir: str | None, notes: list[str]
) -> Dataset | IterableDataset:
    try:
        return load_tars(members, image_field, streaming, cache_dir, notes)
    except DatasetGenerationError as error:
        raise ValueError(first_line(error.__cause__ or error)) from error


def _prepare(source: str, name: str, config: str | None = None, **options: Any) -> Dataset | IterableDataset:
    # It logs damaged files, for which an error follows.
    log = logging.getLogger("datasets")
    level = log.level
    try:
        log.setLevel(logging.CRITICAL)
        return load_dataset(name, config, **options)
    except DatasetGenerationError as error:
        raise ValueError(f"{source} cannot be read: {first_line(error.__cause__ or error)}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{source} cannot be read: {first_line(error)}") from error
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise ValueError(f"split {options['split']!r} of {source} is empty") from error
    finally:
        log.setLevel(level)


def _image_files(
    members: list[str],
    files: Files,
    parts: Sequence[Files],
    known: set[str],
    label_column: str | None,
    notes: list[str],
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
        for name, values in read_metadata(files.metadata, members, known, notes).items():
            if name != "image":
                dataset = dataset.add_column(name, values)
        usual = any(name.lower() in LABEL_COLUMNS for name in dataset.column_names)
        if usual or label_column in dataset.column_names:
            if class_folders(files):
                notes.append(
                    f"the labels come from {os.path.basename(files.metadata[0])}, not from the names of the folders"
                )
            return dataset
    folders, beside = files.top(["image"])
    if not class_folders(files):
        if folders:
            notes.append(
                f"no labels: the sub-folders {some(folders)} are not taken for classes, because more images lie "
                "beside them than in them"
            )
        return dataset
    names = sorted({name for part in parts for name in class_folders(part)})
    number = {name: index for index, name in enumerate(names)}
    start = len(os.path.join(files.root, ""))
    classes = [class_of(file, start) for file in members]
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


def _stream(dataset: Dataset) -> IterableDataset:
    return dataset.to_iterable_dataset(num_shards=min(len(dataset), STREAM_SHARDS))
