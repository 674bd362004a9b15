"""Turn the labels of a dataset, whatever their type, into classes."""

import json
import math
import re
from collections.abc import Sequence, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Value


# Names of columns that are taken for labels, the first one that is there.
LABEL_COLUMNS = ("label", "labels", "cls", "class", "category", "txt")
# Texts are taken for classes, without being asked for, unless more than this part of them are different.
MOST_DIFFERENT = 0.75
# Texts that are whole numbers as they are written: 01 is not 1.
NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}")
DECIMAL = re.compile(r"[+-]?[0-9]*\.[0-9]+(e[+-]?[0-9]+)?", re.IGNORECASE)


class LabelError(ValueError):
    """A column that the user names does not exist or cannot be the labels."""


class OtherClassesError(ValueError):
    """Two datasets have no class in common."""


def label_problem(feature: Any) -> str | None:
    """Return why a column of this type cannot be the labels, or None if it may."""
    if isinstance(feature, ClassLabel):
        return None
    if isinstance(feature, Value):
        if feature.dtype.startswith(("int", "uint", "bool", "string", "large_string", "float", "double")):
            return None
        if feature.dtype == "null":
            return "it is empty"
        return f"it holds {feature.dtype}, and labels are whole numbers or words"
    if isinstance(feature, dict):
        return "it holds records; k-NN needs one whole number or word per image"
    if isinstance(feature, list) or type(feature).__name__ in ("List", "LargeList", "Sequence"):
        return "it holds several values per image; k-NN needs one whole number or word"
    return f"it holds {type(feature).__name__}, and labels are whole numbers or words"


def to_classes(dataset: Dataset, column: str, must: bool, known: Set[str] = frozenset()) -> tuple[Dataset, str | None]:
    """
    Return the dataset with a column of integers or `ClassLabel`, and None; or as it was, and why that is impossible.

    Words become the classes of a `ClassLabel`, in alphabetical order; so do booleans. Texts and floats that are whole
    numbers become integers. Missing labels stay missing.

    Args:
        dataset (`Dataset`): The rows.
        column (`str`): Name of the column.
        must (`bool`): Whether the user named the column. If not, texts that differ from image to image are no words.
        known (`Set[str]`): Words that are classes of another split; texts are words if one of them is there.
    """
    feature = dataset.features[column]
    problem = label_problem(feature)
    if problem is not None:
        return dataset, problem
    values = _column(dataset, column)
    if isinstance(feature, ClassLabel):
        return dataset, _beyond(values, feature)
    if len(values) and values.null_count == len(values):
        return dataset, "it is empty"
    if pa.types.is_floating(values.type):
        return _whole_numbers(dataset, column, values.to_pylist())
    if pa.types.is_boolean(values.type):
        values = pc.if_else(values, "true", "false")
    elif pa.types.is_integer(values.type):
        if pa.types.is_uint64(values.type) and len(values.drop_null()) and pc.max(values).as_py() > 2**63 - 1:
            values = pc.cast(values, pa.string())
        else:
            return dataset, None
    if pa.types.is_integer(values.type):
        return _replaced(dataset, column, values, Value("int64")), None
    values = pc.utf8_trim_whitespace(values)
    values = pc.if_else(pc.equal(values, ""), None, values)
    names = sorted(pc.unique(values.drop_null()).to_pylist())
    if all(NUMBER.fullmatch(name) and abs(int(name)) < 2**63 for name in names):
        return _replaced(dataset, column, pc.cast(values, pa.int64()), Value("int64")), None
    if all(map(DECIMAL.fullmatch, names)):
        return _whole_numbers(dataset, column, [None if text is None else float(text) for text in values.to_pylist()])
    different = len(values) > 4 and len(names) > MOST_DIFFERENT * len(values) and not known & set(names)
    if different and not must:
        return dataset, f"it holds {len(names)} different texts for {len(values)} images"
    number = {name: index for index, name in enumerate(names)}
    numbers = pa.array([None if value is None else number[value] for value in values.to_pylist()], pa.int64())
    return _replaced(dataset, column, numbers, ClassLabel(names=names)), None


def json_labels(
    dataset: Dataset, column: str, key: str | None, source: str
) -> tuple[str | None, list[Any] | None, list[str]]:
    """
    Find the labels in a column of JSON texts, each of them a record or the label itself.

    Args:
        dataset (`Dataset`): The rows.
        column (`str`): Column of JSON texts.
        key (`str`, *optional*): Key of the label. By default, the first usual name of a label.
        source (`str`): Name of the dataset, for the message.

    Returns:
        The key, if the texts are records; the label of every row, or None if there are none; and all keys.

    Raises:
        ValueError: If a text is not JSON.
    """
    try:
        records = [None if text is None else json.loads(text) for text in dataset[column]]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: the .json of a sample cannot be read: {error}") from error
    keys = list(dict.fromkeys(name for record in records if isinstance(record, dict) for name in record))
    if not keys and key is None:
        return None, records, []
    found = key if key is not None else next((name for name in LABEL_COLUMNS if name in keys), None)
    if found not in keys:
        return key, None, keys
    return found, [record.get(found) if isinstance(record, dict) else None for record in records], keys


def text_labels(values: Sequence[Any]) -> tuple[pa.Array, str | None]:
    """Return values of JSON as texts, and why they cannot be labels, if one of them is a list or a record."""
    nested = next((value for value in values if isinstance(value, list | dict)), None)
    if nested is not None:
        problem = label_problem({} if isinstance(nested, dict) else [])
        return pa.nulls(len(values), pa.string()), problem
    return pa.array([None if value is None else _text(value) for value in values], pa.string()), None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and _is_whole(value) else str(value)


def _is_whole(value: float) -> bool:
    return math.isfinite(value) and value == round(value) and abs(value) < 2**63


def _whole_numbers(dataset: Dataset, column: str, values: Sequence[float | None]) -> tuple[Dataset, str | None]:
    known = [None if value is None or math.isnan(value) else value for value in values]
    unusable = next((value for value in known if value is not None and not _is_whole(value)), None)
    if unusable is not None:
        return dataset, f"it holds numbers that are not whole, such as {unusable:g}"
    numbers = pa.array([None if value is None else int(value) for value in known], pa.int64())
    return _replaced(dataset, column, numbers, Value("int64")), None


def _beyond(values: pa.Array, feature: ClassLabel) -> str | None:
    """Return why the numbers of a `ClassLabel` cannot be used: one of them has no name."""
    highest = pc.max(values).as_py()
    if highest is None or highest < len(feature.names):
        return None
    return f"it holds the class number {highest}, but has the names of {len(feature.names)} classes"


def labeled_rows(dataset: Dataset) -> tuple[Dataset, int]:
    """Return the rows of a dataset that have a label, and the number of those that have none."""
    labels = _column(dataset, "label")
    known = pc.and_(pc.is_valid(labels), pc.greater_equal(pc.fill_null(labels, -1), 0))
    rows = pc.indices_nonzero(known).to_pylist()
    return (dataset, 0) if len(rows) == len(dataset) else (dataset.select(rows), len(dataset) - len(rows))


def class_names(dataset: Dataset) -> frozenset[str]:
    """Return the names of the classes of a dataset; none if they are numbers or there are no labels."""
    return frozenset(getattr(dataset.features.get("label"), "names", None) or ())


def same_classes(first: Dataset, second: Dataset, names: tuple[str, str]) -> tuple[Dataset, Dataset, str | None]:
    """
    Number the classes of two datasets alike, by their names.

    Args:
        first, second (`Dataset`): Labeled rows. Those of the first vote for those of the second.
        names (`tuple[str, str]`): What to call them in messages.

    Returns:
        Both datasets, and a line about classes of the second that the first lacks, if there are any.

    Raises:
        OtherClassesError: If one has words and the other numbers, or they have no class in common.
    """
    labels = [dataset.features["label"] for dataset in (first, second)]
    worded = [isinstance(label, ClassLabel) for label in labels]
    if worded[0] != worded[1]:
        words, numbers = names if worded[0] else names[::-1]
        raise OtherClassesError(
            f"the classes of {words} have names and those of {numbers} are numbers: label both alike"
        )
    if not worded[0]:
        known = set(pc.unique(_column(first, "label")).to_pylist())
        unknown = sorted(set(pc.unique(_column(second, "label")).to_pylist()) - known)
        common = len(pc.unique(_column(second, "label"))) - len(unknown)
        shown: Sequence[Any] = unknown
    else:
        mine, other = (label.names for label in labels)
        used = {other[number] for number in pc.unique(_column(second, "label")).to_pylist()}
        shown = sorted(used - {mine[number] for number in pc.unique(_column(first, "label")).to_pylist()})
        common = len(used) - len(shown)
        if mine != other:
            merged = sorted({*mine, *other})
            first, second = (_renumbered(dataset, merged) for dataset in (first, second))
    if not common:
        raise OtherClassesError(
            f"{names[1]} have other classes than {names[0]}: {some(shown)}, which none of {names[0]} belongs to"
        )
    if not shown:
        return first, second, None
    return first, second, f"no image of {names[0]} is of class {some(shown)}: {names[1]} of these count as wrong"


def _renumbered(dataset: Dataset, names: list[str]) -> Dataset:
    old = dataset.features["label"].names
    number = {name: index for index, name in enumerate(names)}
    values = [None if value is None else number[old[value]] for value in _column(dataset, "label").to_pylist()]
    return _replaced(dataset, "label", pa.array(values, pa.int64()), ClassLabel(names=names))


def _column(dataset: Dataset, column: str) -> pa.Array:
    """Return a column as one array, in the order of the rows."""
    table = dataset.select_columns([column]).with_format("arrow")[:]
    values = table.column(column).combine_chunks()
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
        values = values.cast(pa.string())
    return values


def _replaced(dataset: Dataset, column: str, values: pa.Array, feature: Any) -> Dataset:
    others = [name for name in dataset.column_names if name != column]
    features = Features({**{name: dataset.features[name] for name in others}, column: feature})
    return dataset.select_columns(others).add_column(column, values, feature=feature).cast(features)


def some(values: Sequence[Any]) -> str:
    """Name the first three of some values, and count the others."""
    return ", ".join(map(str, values[:3])) + (f" and {len(values) - 3} more" if len(values) > 3 else "")
