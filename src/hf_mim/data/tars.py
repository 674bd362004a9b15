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


def load_tars(paths: Sequence[str], streaming: bool, cache_dir: str | None) -> Dataset | IterableDataset:
    """
    Return the samples of shards, with the columns `image` and those of `TEXT_FIELDS` that the first shard has.

    Args:
        paths (`Sequence[str]`): Paths of the shards.
        streaming (`bool`): Read while iterating; the shards are shared among data-loading processes.
        cache_dir (`str`, *optional*): Folder for the prepared dataset.

    Raises:
        ValueError: If a shard is no tar, is damaged, or has no picture.
    """
    fields = _fields(paths[0])
    features = Features({"image": Image(decode=False), **{name: Value("string") for name in fields}})
    # Size and time belong to the identity of the prepared dataset.
    shards = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    options: dict[str, Any] = {"features": features, "gen_kwargs": {"shards": shards, "fields": tuple(fields)}}
    if streaming:
        return IterableDataset.from_generator(_rows, **options)
    return Dataset.from_generator(_rows, cache_dir=cache_dir, **options)


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


def _fields(path: str) -> list[str]:
    """Return the text fields of a shard, in the order of `TEXT_FIELDS`."""
    names: set[str] = set()
    pictures = 0
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                field = os.path.basename(member.name).partition(".")[2].lower()
                pictures += _is_picture(field)
                names.add(field)
            _check_end(path, archive)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(_unreadable(path, error)) from error
    if not pictures:
        found = ", ".join(sorted(filter(None, names))) or "no files"
        raise ValueError(f"{path}: no picture in the tar, only {found}; the extension of a file name is its kind")
    return [field for field in TEXT_FIELDS if field in names]


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


def _rows(shards: Sequence[tuple[str, int, int]], fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for path, _, _ in shards:
        for sample in samples(path):
            texts = {name: sample[name][1].decode("utf-8", "replace") if name in sample else None for name in fields}
            picture = next((field for field in sample if _is_picture(field)), None)
            # A sample without a picture is a missing image, which is counted and reported as unreadable.
            image = None
            if picture is not None:
                name, data = sample[picture]
                image = {"bytes": data, "path": name}
            yield {"image": image, **texts}


def _is_picture(field: str) -> bool:
    return f".{field.rpartition('.')[2]}" in IMAGE_EXTENSIONS
