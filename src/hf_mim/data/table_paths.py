"""
Which files the rows of a table may name.

A row without bytes names a file. Somebody else's table could name any file of this machine, which would be trained on
and drawn into published pictures. Paths count from the folder of their dataset and stay below it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import datasets
import fsspec
import huggingface_hub.constants
import pyarrow.compute as pc
from datasets import Dataset

from .folders import ascii_path


@dataclass(frozen=True)
class AllowedPaths:
    """
    Files that a table may name.

    Attributes:
        roots (`tuple[str, ...]`): Folders in which they lie, without links. Relative paths count from the first.
        repository (`str`, *optional*): Dataset of the Hub of which they may be a part.
        everything (`bool`): Whether any file is allowed.
    """

    roots: tuple[str, ...]
    repository: str | None
    everything: bool

    @classmethod
    def of(
        cls, local: str | None, dataset_name: str | None, cache_dir: str | None, everything: bool
    ) -> "AllowedPaths":
        """Return the files that a local dataset may name, or a dataset of the Hub, whose files are in the caches."""
        if local is not None:
            path = os.path.realpath(os.path.expanduser(local))
            # Of a file or a pattern, the folder.
            while not os.path.isdir(path):
                path = os.path.dirname(path)
            return cls((path,), None, everything)
        caches: Sequence[Any] = (
            cache_dir,
            huggingface_hub.constants.HF_HUB_CACHE,
            datasets.config.HF_DATASETS_CACHE,
        )
        return cls(tuple(os.path.realpath(cache) for cache in caches if cache), dataset_name, everything)

    def resolve(self, path: str) -> str | None:
        """Return the absolute path or address of a file, or None if it is not allowed."""
        if "\0" in path:
            return None
        # The last part of a chain such as zip://a.png::images.zip is what is opened first.
        inner, separator, outer = path.rpartition("::")
        if outer.startswith("file://"):
            outer = outer.removeprefix("file://")
        if "://" in outer:
            own = f"hf://datasets/{self.repository}"
            allowed = self.repository is not None and outer.startswith((f"{own}@", f"{own}/"))
            return path if allowed or self.everything else None
        if any(not part.startswith(ARCHIVES) for part in inner.split("::") if part):
            return path if self.everything else None
        file = os.path.join(self.roots[0], outer)
        folder, name = os.path.split(file)
        real = os.path.join(_real_folder(folder), name)
        if name in ("", ".", "..") or os.path.islink(real):
            real = os.path.realpath(file)
        if not self.everything and not any(real.startswith(os.path.join(root, "")) for root in self.roots):
            return None
        return f"{inner}::{file}" if separator else file


@lru_cache(maxsize=1024)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


# Protocols of fsspec that read from inside of another file.
ARCHIVES = ("zip://", "tar://", "gzip://", "bz2://", "xz://", "lz4://", "zstd://", "libarchive://")


def resolve_paths(dataset: Dataset, allowed: AllowedPaths, source: str) -> Dataset:
    """
    Return a dataset in which the paths of all images without bytes are absolute.

    Args:
        dataset (`Dataset`): Has the column `image`, {"bytes", "path"}.
        allowed (`AllowedPaths`): The files that may be named.
        source (`str`): Name of the dataset, for the message.

    Raises:
        ValueError: If a row names another file.
    """
    relative, row = False, 0
    for table in dataset.select_columns("image").with_format("arrow").iter(1000):
        images = table.column("image")
        named = pc.and_(pc.is_null(pc.struct_field(images, "bytes")), pc.is_valid(pc.struct_field(images, "path")))
        if pc.any(named).as_py():
            rows = pc.indices_nonzero(named).to_pylist()
            paths = pc.struct_field(images, "path").take(pc.indices_nonzero(named)).to_pylist()
            for index, path in zip(rows, paths, strict=True):
                resolved = allowed.resolve(path)
                if resolved is None:
                    raise ValueError(refusal(path, allowed, f"row {row + index} of {source}"))
                relative |= resolved != path
        row += len(images)
    if not relative:
        return dataset
    return dataset.map(_absolute, fn_kwargs={"allowed": allowed}, features=dataset.features)


def fetch(example: dict[str, Any], paths: AllowedPaths | None, token: str | None) -> dict[str, Any]:
    """
    Read the file that a row of a stream names by an address, or make its path absolute.

    Raises:
        ValueError: If the row names a file that it may not.
    """
    image = example["image"]
    if paths is None or image is None or image["bytes"] is not None or image["path"] is None:
        return example
    path = paths.resolve(image["path"])
    if path is None:
        raise ValueError(refusal(image["path"], paths, "a row of the stream"))
    if "://" not in path:
        return {**example, "image": {"bytes": None, "path": path}}
    options = {"hf": {"token": token}} if token else {}
    with fsspec.open(path, "rb", **options) as file:
        return {**example, "image": {"bytes": file.read(), "path": image["path"]}}


def refusal(path: str, allowed: AllowedPaths, row: str) -> str:
    """Return the message about a row that names a file outside of its dataset."""
    place = f"the dataset {allowed.repository}" if allowed.repository else allowed.roots[0]
    return f"{row} names the file {ascii_path(path)}, which is not in {place}; --outside_paths allows such files"


def _absolute(example: dict[str, Any], allowed: AllowedPaths) -> dict[str, Any]:
    image = example["image"]
    if image is None or image["bytes"] is not None or image["path"] is None:
        return example
    return {**example, "image": {"bytes": None, "path": allowed.resolve(image["path"])}}
