"""`hf-mim check-data SOURCE`: read every image as training would, and report sizes, duplicates and broken images."""

import dataclasses
import glob
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..utils.command_line import CommandParser, finite_number, worker_count
from .clean_list import image_names, write_clean_list
from .images import UnreadableImageError, check_value_range, decode_image, read_image
from .source_report import ImageFacts, describe_images, image_facts
from .sources import load_image_dataset
from .workers import ignore_stop_signals


# Images with a shorter side below this many pixels are only ever enlarged.
SMALL_SIDE = 32
# Number of groups of duplicates in the printed report; the JSON has all of them.
MAX_GROUPS = 10


@dataclasses.dataclass
class DataReport:
    """
    Report of [`check_dataset`]. Images are named as in a clean list (`hf_mim.data.clean_list`), rows as "row 7".

    Attributes:
        images (`int`): Number of images, including unreadable ones.
        unreadable (`dict[str, str]`): Name and reason of every image that `decode_image` refuses.
        unreadable_rows (`list[int]`): Their row numbers.
        labels (`dict[str, int]`, *optional*): Number of images per class name, and without a class ("none"); None
            without labels.
        smallest, median, largest (`tuple[int, int]`, *optional*): (width, height) in pixels, upright, ordered by
            area; None without images.
        small (`int`): Number of images with a side of less than 32 pixels.
        modes, formats (`dict[str, int]`): Number of images per Pillow mode and file format.
        duplicates (`list[list[str]]`): Groups of readable images with exactly the same bytes.
        notes (`list[str]`): What the source holds and what is not read, one line each.
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
    notes: list[str]


def check_dataset(
    dataset: Dataset,
    root: str | None = None,
    num_workers: int = 0,
    progress: bool = False,
    value_range: Sequence[float] | None = None,
    notes: Sequence[str] = (),
) -> DataReport:
    """
    Decode every image of a dataset once and report on them. Of each image, only a checksum stays in memory.

    Args:
        dataset (`Dataset`): Has the column `image` and perhaps `label`, as `load_image_dataset` returns it.
        root (`str`, *optional*): The folder it was loaded from; images are named relative to it.
        num_workers (`int`, defaults to 0): Processes that decode images; 0 decodes in this process.
        progress (`bool`, defaults to `False`): Show a progress bar on stderr, if it is a terminal.
        value_range (`Sequence[float]`, *optional*): As for `decode_image`.
        notes (`Sequence[str]`): Those of `load_image_dataset`, which come first among those of the report.
    """
    names, _ = image_names(dataset, root)
    is_row = [name == str(row) for row, name in enumerate(names)]
    names = [f"row {name}" if is_row[row] else name for row, name in enumerate(names)]
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    unreadable: dict[int, tuple[str, str]] = {}
    first: dict[bytes, int] = {}
    copies: dict[int, list[int]] = {}
    held: list[tuple[str, ImageFacts]] = []
    for row, facts in enumerate(_inspected(dataset, num_workers, progress, value_range)):
        if isinstance(facts, _Failure):
            # The name within the shard helps to find an image that is otherwise named by its row.
            name = f"{names[row]} ({facts.path})" if is_row[row] and facts.path else names[row]
            unreadable[row] = name, facts.reason
            continue
        sizes[facts.size] += 1
        modes[facts.held.mode] += 1
        formats[facts.held.format or "unknown"] += 1
        held.append((names[row], facts.held))
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
        notes=[*notes, *describe_images(held, value_range)],
    )


class _Facts(NamedTuple):
    size: tuple[int, int]
    held: ImageFacts
    digest: bytes


class _Failure(NamedTuple):
    path: str | None
    reason: str


def _inspected(
    dataset: Dataset, num_workers: int, progress: bool, value_range: Sequence[float] | None
) -> Iterator[_Facts | _Failure]:
    loader = DataLoader(
        dataset.select_columns("image"),
        batch_size=16,
        num_workers=num_workers,
        collate_fn=partial(_inspect_all, value_range=value_range),
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator(),
    )
    # `disable=None` shows the bar on a terminal only.
    with tqdm(total=len(dataset), desc="images", unit="image", disable=None if progress else True, leave=False) as bar:
        for batch in loader:
            yield from batch
            bar.update(len(batch))


def _inspect_all(rows: list[dict[str, Any]], value_range: Sequence[float] | None) -> list[_Facts | _Failure]:
    with warnings.catch_warnings():
        # Pillow warns of defects that do not keep it from reading an image.
        warnings.simplefilter("ignore")
        return [_inspect(row["image"], value_range) for row in rows]


def _inspect(image: dict[str, Any] | None, value_range: Sequence[float] | None) -> _Facts | _Failure:
    path = None if image is None else image["path"]
    try:
        _, data = read_image(image)
        picture = decode_image(data, value_range=value_range)
    except OSError as error:
        return _Failure(path, error.strerror or str(error))
    except UnreadableImageError as error:
        # The report names the image itself.
        return _Failure(path, str(error).removeprefix("cannot read image (no file name): "))
    return _Facts(picture.size, image_facts(data), hashlib.blake2b(data, digest_size=16).digest())


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
    """
    Check a dataset and print the report.

    Returns:
        `int`: Exit code of the process: 1 if an image is unreadable, 0 otherwise.

    Raises:
        ValueError, OSError: As for `load_image_dataset`; for a number of processes below 1; and if the clean list
            cannot be written.
    """
    arguments = _parser().parse_args(argv)
    if arguments.num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {arguments.num_workers}")
    source = arguments.source
    is_path = arguments.dataset_config_name is None and (Path(source).expanduser().exists() or glob.has_magic(source))
    root = source if is_path else None
    if arguments.value_range is not None:
        check_value_range(arguments.value_range)
    notes: list[str] = []
    dataset = load_image_dataset(
        dataset_name=None if is_path else source,
        dataset_config_name=arguments.dataset_config_name,
        data_dir=root,
        split=arguments.split,
        image_column_name=arguments.image_column_name,
        label_column_name=arguments.label_column_name,
        outside_paths=arguments.outside_paths,
        notes=notes,
    )
    num_workers = arguments.num_workers if arguments.num_workers > 1 else 0
    report = check_dataset(dataset, root, num_workers, True, arguments.value_range, notes)
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
    sizes = (report.smallest, report.median, report.largest)
    if report.smallest is not None:
        smallest, median, largest = (f"{size[0]} x {size[1]}" for size in sizes if size is not None)
        lines.append(f"sizes       smallest {smallest}, median {median}, largest {largest} (width x height in pixels)")
        lines.append(f"small       {report.small} with a side of less than {SMALL_SIDE} pixels")
    lines += [f"note        {note}" for note in report.notes]
    lines += [f"modes       {counts(report.modes)}", f"formats     {counts(report.formats)}"]
    extra = sum(map(len, report.duplicates)) - len(report.duplicates)
    lines.append(f"duplicates  {extra}, with exactly the same bytes as another image")
    lines += [f"  {group[0]}: {len(group)} times" for group in report.duplicates[:MAX_GROUPS]]
    if len(report.duplicates) > MAX_GROUPS:
        lines.append(f"  ... and {len(report.duplicates) - MAX_GROUPS} more (--json names all)")
    lines.append(f"unreadable  {len(report.unreadable_rows)}")
    lines += [f"  {name}: {reason}" for name, reason in report.unreadable.items()]
    return "\n".join(lines)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="hf-mim check-data",
        description="Read every image once, as training would, and report sizes, duplicates and broken images.",
        epilog="The exit code is 0, 1 if an image is unreadable, or 2 after a mistake in the arguments.",
    )
    parser.add_argument("source", metavar="SOURCE", help="folder, parquet or tar files, Hub id, or photo-tiles")
    parser.add_argument("--split", default="train", help="split to check (default: %(default)s)")
    parser.add_argument("--dataset_config_name", help="configuration of a Hub dataset")
    parser.add_argument("--image_column_name", help="column of the images, where it cannot be guessed")
    parser.add_argument(
        "--num_workers",
        type=worker_count,
        default=os.cpu_count() or 1,
        help="processes (default: one per core)",
    )
    parser.add_argument("--label_column_name", help="column of the labels, where it cannot be guessed")
    parser.add_argument(
        "--value_range",
        type=finite_number,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values of grayscale images with more than 8 bits that become black and white (default: 0 65535)",
    )
    parser.add_argument(
        "--outside_paths", action="store_true", help="allow tables to name files outside of their dataset's folder"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON, with all names")
    parser.add_argument(
        "--write_clean_list",
        metavar="FILE",
        help="write the names of the readable images to this file, for --clean_list of hf-mim pretrain",
    )
    return parser
