"""
Clean lists: which images of a dataset can be read, as `hf-mim check-data` writes and `hf-mim pretrain` reads them.

A clean list is a text file in UTF-8. Its first line identifies the dataset: the number of all images and a checksum of
their names (for image files) or of the sizes of their encodings (for tables and archives). Every other line is an
image: its path relative to the folder, or its row number, from 0, if it is not a file in the folder or its path has
unprintable characters. Lines may be removed.
"""

import os
import zlib
from collections.abc import Collection
from pathlib import Path

import pyarrow.compute as pc
from datasets import Dataset

from ..utils.files import replaced_file


# The wording is part of the file format.
HEADER = "# images of a hf-mim data set: {count} in all, checksum {checksum:08x}"


def image_names(dataset: Dataset, root: str | None) -> tuple[list[str], int]:
    """
    Return the name of every row in a clean list, and the checksum. No image is read.

    Args:
        dataset (`Dataset`): Has the column `image`, as `load_image_dataset` returns it.
        root (`str`, *optional*): The folder it was loaded from.
    """
    start = None if root is None else os.path.join(os.path.abspath(os.path.expanduser(root)), "")
    names: list[str] = []
    checksum = 0
    for table in dataset.select_columns("image").with_format("arrow").iter(1000):
        images = table.column("image")
        paths = pc.struct_field(images, "path").to_pylist()
        sizes = pc.binary_length(pc.struct_field(images, "bytes")).to_pylist()
        for path, size in zip(paths, sizes, strict=True):
            name = identity = str(len(names))
            if size is None and path and start and path.startswith(start) and path.isprintable():
                name = identity = path.removeprefix(start)
            elif size is not None or path:
                identity = f"{name} {path if size is None else size}"
            names.append(name)
            checksum = zlib.crc32(f"{identity}\n".encode(), checksum)
    return names, checksum


def write_clean_list(path: str | Path, dataset: Dataset, root: str | None, unreadable: Collection[int]) -> None:
    """Write a clean list of all rows except those in `unreadable`, atomically."""
    names, checksum = image_names(dataset, root)
    lines = [HEADER.format(count=len(names), checksum=checksum)]
    lines += [name for row, name in enumerate(names) if row not in unreadable]
    with replaced_file(path) as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def keep_listed(dataset: Dataset, path: str | Path, root: str | None) -> Dataset:
    """
    Return the rows of a dataset that a clean list names, in the order of the dataset.

    Args:
        dataset (`Dataset`): Has the column `image`.
        path (`str` or `Path`): The clean list.
        root (`str`, *optional*): The folder the dataset was loaded from.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a clean list, belongs to other images, or is empty.
    """
    header, *lines = Path(path).read_bytes().decode("utf-8", errors="replace").splitlines() or [""]
    if not header.startswith(HEADER.partition("{")[0]):
        raise ValueError(f"{path} is not a clean list: hf-mim check-data SOURCE --write_clean_list {path} writes one")
    names, checksum = image_names(dataset, root)
    expected = HEADER.format(count=len(names), checksum=checksum)
    if header != expected:
        raise ValueError(f"{path} is of other images than these: it begins with '{header}', not '{expected}'")
    rows = {name: row for row, name in enumerate(names)}
    unknown = next((name for name in lines if name not in rows), None)
    if unknown is not None:
        raise ValueError(f"{path} names {unknown!r}, which is not among the images")
    if not lines:
        raise ValueError(f"{path} lists no image")
    return dataset.select(sorted({rows[name] for name in lines}))
