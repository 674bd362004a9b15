"""Lists of the images that can be read, as `hf-mim check-data` writes and `hf-mim pretrain` takes them.

A text file in UTF-8. Its first line says of which data set it is: the number of all images and a checksum of their
names (for image files) or of the sizes of their encodings (for tables and archives). Every other line is an image: the
path relative to the folder, or the row number, from 0, of an image that is not a file in the folder or whose path
holds unprintable characters. Lines may be removed.
"""

import os
import zlib
from collections.abc import Collection
from pathlib import Path

import pyarrow.compute as pc
from datasets import Dataset

from ..utils.files import replaced_file


HEADER = "# images of a hf-mim data set: {count} in all, checksum {checksum:08x}"


def image_names(dataset: Dataset, root: str | None) -> tuple[list[str], int]:
    """The name of every row in a clean list, and the checksum; no image is read.

    Args:
        dataset: with the column `image`, as `load_image_dataset` gives it.
        root: the folder it was loaded from, if any.
    """
    start = None if root is None else os.path.join(os.path.abspath(os.path.expanduser(root)), "")
    names, checksum = [], 0
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
    """List all rows but those of `unreadable`; the file is written whole or not at all."""
    names, checksum = image_names(dataset, root)
    lines = [HEADER.format(count=len(names), checksum=checksum)]
    lines += [name for row, name in enumerate(names) if row not in unreadable]
    with replaced_file(path) as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def keep_listed(dataset: Dataset, path: str | Path, root: str | None) -> Dataset:
    """The rows of a data set that a clean list names, in the order of the data set.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no clean list, or one of other images or of none.
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
