"""Read the columns of `metadata.csv` and `metadata.jsonl`, which describe the image files beside them."""

import csv
import json
import os
from collections.abc import Sequence, Set
from typing import Any

import pyarrow as pa

from .folders import ascii_path


FILE_COLUMN = "file_name"


def read_metadata(
    paths: Sequence[str], members: Sequence[str], known: Set[str], notes: list[str]
) -> dict[str, pa.Array]:
    """
    Return the columns of metadata files, one value for each image.

    Args:
        paths (`Sequence[str]`): The metadata files. Their column `file_name` counts from their own folder.
        members (`Sequence[str]`): Absolute paths of the images.
        known (`Set[str]`): Those of all splits, which a file may describe as well.
        notes (`list[str]`): A line about images that no file describes is appended.

    Raises:
        ValueError: If a file is not CSV or JSON lines, has no column `file_name`, or names a file that is not among
            the images, or one of them twice.
    """
    rows: dict[str, dict[str, Any]] = {}
    columns: dict[str, None] = {}
    for path in paths:
        for record in _records(path):
            name = record.pop(FILE_COLUMN)
            file = os.path.normpath(os.path.join(os.path.dirname(path), str(name)))
            if file not in known:
                where = (
                    "there is no such image"
                    if file.startswith(os.path.join(os.path.dirname(path), ""))
                    else ("it lies outside of the folder")
                )
                raise ValueError(f"{path} describes {ascii_path(str(name))}, but {where}")
            if file in rows:
                raise ValueError(f"{path} describes {ascii_path(str(name))} twice")
            rows[file] = record
            columns.update(dict.fromkeys(record))
    without = [file for file in members if file not in rows]
    if without:
        notes.append(
            f"{len(without)} of {len(members)} images are not in {os.path.basename(paths[0])}, such as "
            f"{ascii_path(without[0])}"
        )
    found = {}
    for column in columns:
        values = [rows.get(file, {}).get(column) for file in members]
        try:
            found[column] = pa.array(values)
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{paths[0]} cannot be read: its column {column!r} has text that is no Unicode"
            ) from error
        except (pa.ArrowException, OverflowError):
            # Words and numbers in one column, or numbers beyond 64 bits.
            found[column] = pa.array([None if value is None else str(value) for value in values])
    return found


def _records(path: str) -> list[dict[str, Any]]:
    try:
        if path.endswith(".csv"):
            # Text as it is written: 01 is not 1. Labels that are whole numbers become numbers later.
            with open(path, encoding="utf-8-sig", newline="") as file:
                records = [
                    {name: value or None for name, value in record.items() if name}
                    for record in csv.DictReader(file, skipinitialspace=True)
                ]
        else:
            with open(path, encoding="utf-8-sig") as file:
                records = [json.loads(line) for line in file if line.strip()]
    except (ValueError, csv.Error, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).partition(chr(10))[0]}") from error
    for record in records:
        if not isinstance(record, dict) or not isinstance(record.get(FILE_COLUMN), str):
            columns = f"; its columns are {', '.join(record)}" if isinstance(record, dict) else ""
            raise ValueError(f"{path} needs the column {FILE_COLUMN}, with the name of an image in every row{columns}")
    return records
