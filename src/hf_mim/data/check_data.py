"""`hf-mim check-data SOURCE`: reads every image as training would, and tells what is there and what is broken."""

import argparse
import dataclasses
import glob
import hashlib
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .clean_list import image_names, write_clean_list
from .images import FORMATS, UnreadableImageError, decode_image, read_image
from .sources import load_image_dataset
from .workers import ignore_stop_signals


# Below this side, in pixels, every view that is made of a picture is an enlargement.
SMALL_SIDE = 32
# Groups of duplicates that the printed report names; the others are in the JSON.
MAX_GROUPS = 10


@dataclasses.dataclass
class DataReport:
    """What `check_dataset` finds. Images are named as in a clean list (`hf_mim.data.clean_list`), rows as "row 7".

    Attributes:
        images: number of images, unreadable ones included.
        unreadable: name and reason of every image that `decode_image` refuses.
        unreadable_rows: their row numbers.
        labels: number of images of every class, by its name, and of those without one ("none"); None without labels.
        smallest, median, largest: (width, height) in pixels, upright, in the order of the area; None without images.
        small: number of images with a side of less than 32 pixels.
        modes, formats: number of images of every Pillow mode and file format.
        duplicates: groups of readable images of exactly the same bytes.
    """

    images: int
    unreadable: dict[str, str]
    unreadable_rows: list[int]
    labels: dict[str, int] | None
    smallest: tuple[int, int] | None
    median: tuple[int, int] | None
    largest: tuple[int, int] | None
    small: int
    modes: dict[str, int]
    formats: dict[str, int]
    duplicates: list[list[str]]


def check_dataset(
    dataset: Dataset, root: str | None = None, num_workers: int = 0, progress: bool = False
) -> DataReport:
    """Decode every image of a data set once and report on them. Nothing of an image is kept but a checksum.

    Args:
        dataset: with the column `image` and perhaps `label`, as `load_image_dataset` gives it.
        root: the folder it was loaded from, if any: images are named relative to it.
        num_workers: processes that decode; 0 for none but this one.
        progress: show a bar on stderr, if that is a terminal.
    """
    names, _ = image_names(dataset, root)
    is_row = [name == str(row) for row, name in enumerate(names)]
    names = [f"row {name}" if is_row[row] else name for row, name in enumerate(names)]
    sizes, modes, formats = Counter(), Counter(), Counter()
    unreadable: dict[int, tuple[str, str]] = {}
    first: dict[bytes, int] = {}
    copies: dict[int, list[int]] = {}
    for row, facts in enumerate(_inspected(dataset, num_workers, progress)):
        if isinstance(facts, _Failure):
            # What the shard calls the image helps where the row alone must name it.
            name = f"{names[row]} ({facts.path})" if is_row[row] and facts.path else names[row]
            unreadable[row] = name, facts.reason
            continue
        sizes[facts.size] += 1
        modes[facts.mode] += 1
        formats[facts.format] += 1
        original = first.setdefault(facts.digest, row)
        if original != row:
            copies.setdefault(original, [original]).append(row)

    ordered = [size for size in sorted(sizes, key=lambda size: (size[0] * size[1], size)) for _ in range(sizes[size])]
    return DataReport(
        images=len(dataset),
        unreadable=dict(unreadable.values()),
        unreadable_rows=list(unreadable),
        labels=_count_labels(dataset),
        smallest=ordered[0] if ordered else None,
        median=ordered[len(ordered) // 2] if ordered else None,
        largest=ordered[-1] if ordered else None,
        small=sum(count for size, count in sizes.items() if min(size) < SMALL_SIDE),
        modes=dict(modes.most_common()),
        formats=dict(formats.most_common()),
        duplicates=[[names[row] for row in rows] for rows in copies.values()],
    )


class _Facts(NamedTuple):
    size: tuple[int, int]
    mode: str
    format: str
    digest: bytes


class _Failure(NamedTuple):
    path: str | None
    reason: str


def _inspected(dataset: Dataset, num_workers: int, progress: bool) -> Iterator[_Facts | _Failure]:
    loader = DataLoader(
        dataset.select_columns("image"),
        batch_size=16,
        num_workers=num_workers,
        collate_fn=_inspect_all,
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator(),
    )
    # `disable=None` shows the bar on a terminal only.
    with tqdm(total=len(dataset), desc="images", unit="image", disable=None if progress else True, leave=False) as bar:
        for batch in loader:
            yield from batch
            bar.update(len(batch))


def _inspect_all(rows: list[dict[str, Any]]) -> list[_Facts | _Failure]:
    with warnings.catch_warnings():
        # Pillow warns of what does not keep it from reading an image.
        warnings.simplefilter("ignore")
        return [_inspect(row["image"]) for row in rows]


def _inspect(image: dict[str, Any] | None) -> _Facts | _Failure:
    path = None if image is None else image["path"]
    try:
        _, data = read_image(image)
        picture = decode_image(data)
    except OSError as error:
        return _Failure(path, error.strerror or str(error))
    except UnreadableImageError as error:
        # The report names the image itself.
        return _Failure(path, str(error).removeprefix("cannot read image (no file name): "))
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        return _Facts(picture.size, opened.mode, opened.format, hashlib.blake2b(data, digest_size=16).digest())


def _count_labels(dataset: Dataset) -> dict[str, int] | None:
    if "label" not in dataset.features:
        return None
    names = getattr(dataset.features["label"], "names", None)
    counts = Counter(dataset["label"])
    if names is None:
        return {"none" if label is None else str(label): count for label, count in sorted(counts.items(), key=str)}
    labels = {name: counts[number] for number, name in enumerate(names)}
    without = len(dataset) - sum(labels.values())
    return labels | ({"none": without} if without else {})


# --------------------------------------------------------------------------- command line


def main(argv: Sequence[str] | None = None) -> int:
    """Check a data set and print the report.

    Returns:
        The exit code of the process: 1 if an image is unreadable, 0 otherwise.

    Raises:
        ValueError, OSError: as `load_image_dataset`; for a number of processes below 1; a list that cannot be written.
    """
    arguments = _parser().parse_args(argv)
    if arguments.num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {arguments.num_workers}")
    source = arguments.source
    is_path = arguments.dataset_config_name is None and (Path(source).expanduser().exists() or glob.has_magic(source))
    root = source if is_path else None
    dataset = load_image_dataset(
        dataset_name=None if is_path else source,
        dataset_config_name=arguments.dataset_config_name,
        data_dir=root,
        split=arguments.split,
        image_column_name=arguments.image_column_name,
    )
    num_workers = arguments.num_workers if arguments.num_workers > 1 else 0
    report = check_dataset(dataset, root, num_workers, progress=True)
    print(json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False) if arguments.json else _text(report))
    if arguments.write_clean_list is not None:
        write_clean_list(arguments.write_clean_list, dataset, root, set(report.unreadable_rows))
    return 1 if report.unreadable else 0


def _text(report: DataReport) -> str:
    def counts(numbers: dict[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in numbers.items()) or "-"

    lines = [f"images      {report.images}, of which {report.images - len(report.unreadable_rows)} are readable"]
    if report.labels is not None:
        numbers = report.labels.values()
        lines.append(f"labels      {len(report.labels)}, of {min(numbers)} to {max(numbers)} images each")
    if report.smallest is not None:
        smallest, median, largest = (
            f"{width} x {height}" for width, height in (report.smallest, report.median, report.largest)
        )
        lines.append(f"sizes       smallest {smallest}, median {median}, largest {largest} (width x height in pixels)")
        lines.append(f"small       {report.small} with a side of less than {SMALL_SIDE} pixels")
    lines += [f"modes       {counts(report.modes)}", f"formats     {counts(report.formats)}"]
    extra = sum(map(len, report.duplicates)) - len(report.duplicates)
    lines.append(f"duplicates  {extra}, with exactly the bytes of another image")
    lines += [f"  {group[0]}: {len(group)} times" for group in report.duplicates[:MAX_GROUPS]]
    if len(report.duplicates) > MAX_GROUPS:
        lines.append(f"  ... and {len(report.duplicates) - MAX_GROUPS} more (--json names all)")
    lines.append(f"unreadable  {len(report.unreadable_rows)}")
    lines += [f"  {name}: {reason}" for name, reason in report.unreadable.items()]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-mim check-data",
        description="Read every image once, as training would, and tell what is there and what is broken.",
        epilog="The exit code is 1 if an image is unreadable, 0 otherwise, 2 for a mistake in the arguments.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="folder, parquet or tar files, Hub id, or photo-tiles")
    parser.add_argument("--split", default="train", help="the images to check (default: %(default)s)")
    parser.add_argument("--dataset_config_name", help="configuration of a Hub data set")
    parser.add_argument("--image_column_name", help="column of the images, where it has to be told")
    parser.add_argument(
        "--num_workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON, with all names")
    parser.add_argument(
        "--write_clean_list",
        metavar="FILE",
        help="write the names of the readable images to this file, which hf-mim pretrain takes as --clean_list",
    )
    return parser
