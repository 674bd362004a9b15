"""
Read the samples of WebDataset shards: tar files in which files of one sample share the name up to its first dot.

The loader of `datasets` takes the fields of a tar from its first five samples, and expects pictures under the same
extension in all of them and numbers in every `.cls`. Here, each sample may have its own kind of picture, and `.cls`,
`.txt` and `.json` are texts of which the labels are made later.
"""

import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

from datasets import Dataset, Features, Image, IterableDataset, Value

from .images import IMAGE_EXTENSIONS
from .labels import LABEL_COLUMNS


# Fields of a sample that are texts from which labels can be made.
TEXT_FIELDS = (*LABEL_COLUMNS, "text", "json")


def load_tars(
    paths: Sequence[str], image_field: str | None, streaming: bool, cache_dir: str | None, notes: list[str]
) -> Dataset | IterableDataset:
    """
    Return the samples of shards, with the columns `image` (or `image_field`) and those of `TEXT_FIELDS` in them.

    Args:
        paths (`Sequence[str]`): Paths of the shards.
        image_field (`str`, *optional*): Extension of the pictures; None or "image" is any.
        streaming (`bool`): Read while iterating; the shards are shared among data-loading processes. The fields are
            those of the first shard.
        cache_dir (`str`, *optional*): Folder for the prepared dataset.
        notes (`list[str]`): A line about pictures that are left out is appended.

    Raises:
        ValueError: If a shard is no tar, is damaged, or has no picture.
    """
    if image_field == "image":
        image_field = None
    found, pictures, folders = _fields(paths[0])
    if not found and len(folders) > 1:
        notes.append(
            f"no labels: the folders in {paths[0]} are not taken for classes; unpack it, or give each image NAME.jpg "
            "a NAME.cls with its class"
        )
    if image_field is not None and image_field not in pictures:
        raise ValueError(f"image_column_name {image_field!r} does not exist; the pictures are {sorted(pictures)}")
    if image_field is None:
        several = next((fields for fields in pictures.values() if len(fields) > 1), None)
        if several is not None:
            notes.append(
                f"samples of {paths[0]} have several pictures ({', '.join(several)}), of which {_choose(several)} is "
                "read; image_column_name chooses one"
            )
    fields = found if streaming else TEXT_FIELDS
    features = Features({image_field or "image": Image(decode=False), **{name: Value("string") for name in fields}})
    # Size and time belong to the identity of the prepared dataset.
    shards = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    options: dict[str, Any] = {
        "features": features,
        "gen_kwargs": {"shards": shards, "fields": tuple(fields), "image_field": image_field},
    }
    if streaming:
        return IterableDataset.from_generator(_rows, **options)
    dataset = Dataset.from_generator(_rows, cache_dir=cache_dir, **options)
    # A later shard may have what the first one lacks.
    empty = [name for name in fields if dataset.data.column(name).null_count == len(dataset)]
    return dataset.remove_columns(empty)


def samples(path: str) -> Iterator[dict[str, tuple[str, bytes]]]:
    """
    Yield the samples of one shard: for each field, the name of the file and its contents.

    Raises:
        ValueError: If the file is no tar, is damaged, or names a field of a sample twice.
    """
    sample: dict[str, tuple[str, bytes]] = {}
    current = None
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                folder, name = os.path.split(member.name)
                stem, dot, field = name.partition(".")
                if not member.isfile() or not (stem and dot):
                    continue
                file = archive.extractfile(member)
                assert file is not None
                data = file.read()
                if len(data) < member.size:
                    raise ValueError(f"{path}: {member.name} is cut off; the tar is damaged")
                key = (folder, stem)
                if key != current and sample:
                    yield sample
                    sample = {}
                if field.lower() in sample:
                    raise ValueError(f"{path}: {member.name} is in the tar twice")
                current = key
                sample[field.lower()] = (member.name, data)
            _check_end(path, archive)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(_unreadable(path, error)) from error
    if sample:
        yield sample


def _fields(path: str) -> tuple[list[str], dict[str, list[str]], set[str]]:
    """
    Look through the names in a shard.

    Returns:
        The text fields, in the order of `TEXT_FIELDS`; for each kind of pictures, the kinds that a sample with it has;
        and the folders.
    """
    folders: set[str] = set()
    names: set[str] = set()
    pictures: dict[str, list[str]] = {}
    sample: list[str] = []
    current = None
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                folder, name = os.path.split(member.name)
                stem, dot, field = name.partition(".")
                field = field.lower()
                if not member.isfile() or not (stem and dot):
                    continue
                names.add(field)
                folders.add(folder)
                if (folder, stem) != current:
                    sample, current = [], (folder, stem)
                if _is_picture(field):
                    sample.append(field)
                    if len(sample) > len(pictures.get(field, ())):
                        pictures[field] = sample
            _check_end(path, archive)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(_unreadable(path, error)) from error
    if not pictures:
        found = f"only {', '.join(sorted(names))}" if names else "which has no files of samples"
        raise ValueError(f"{path}: no picture in the tar, {found}; the extension of a file name is its kind")
    return [field for field in TEXT_FIELDS if field in names], pictures, folders


def _check_end(path: str, archive: tarfile.TarFile) -> None:
    """Raise `ReadError` if a tar ends in the middle of a header, which `tarfile` takes for its end."""
    with open(path, "rb") as file:
        compressed = file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")
    if not compressed and (os.path.getsize(path) - archive.offset) % tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data")


def _unreadable(path: str, error: Exception) -> str:
    if os.path.isfile(path) and not os.path.getsize(path):
        return f"{path}: the file is empty"
    if str(error).startswith("file could not be opened"):
        return f"{path}: not a tar archive"
    return f"{path}: not a readable tar ({str(error) or type(error).__name__})"


def _rows(
    shards: Sequence[tuple[str, int, int]], fields: tuple[str, ...], image_field: str | None
) -> Iterator[dict[str, Any]]:
    for path, _, _ in shards:
        for sample in samples(path):
            texts = {name: sample[name][1].decode("utf-8", "replace") if name in sample else None for name in fields}
            pictures = [field for field in sample if _is_picture(field) and image_field in (None, field)]
            # A sample without a picture is a missing image, which is counted and reported as unreadable.
            image = None
            if pictures:
                name, data = sample[_choose(pictures)]
                image = {"bytes": data, "path": name}
            yield {image_field or "image": image, **texts}


def _choose(fields: Sequence[str]) -> str:
    """Return the picture of a sample: `jpg` rather than `mask.png`."""
    return min(fields, key=lambda field: "." in field)


def _is_picture(field: str) -> bool:
    return f".{field.rpartition('.')[2]}" in IMAGE_EXTENSIONS
