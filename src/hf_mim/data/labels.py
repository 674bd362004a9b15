"""Turn the labels of a dataset, whatever their type, into classes."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Value


# Names of columns that are taken for labels, the first one that is there.
LABEL_COLUMNS = ("label", "labels", "cls", "class", "category", "txt")
# Texts of a tar or a table are taken for classes, without being asked for, if each stands for two images on average.
IMAGES_PER_WORD = 2


def label_problem(feature: Any) -> str | None:
    """Return why a column of this type cannot be the labels, or None if it may."""
    if isinstance(feature, ClassLabel):
        return None
    if isinstance(feature, Value):
        if feature.dtype.startswith(("int", "uint", "bool", "string", "large_string", "float", "double")):
            return None
        return f"it holds {feature.dtype}, and labels are whole numbers or words"
    if isinstance(feature, dict):
        return "it holds records; k-NN needs one whole number or word per image"
    if isinstance(feature, list) or type(feature).__name__ in ("List", "LargeList", "Sequence"):
        return "it holds several values per image; k-NN needs one whole number or word"
    return f"it holds {type(feature).__name__}, and labels are whole numbers or words"


def to_classes(dataset: Dataset, column: str, must: bool) -> tuple[Dataset, str | None]:
    """
    Return the dataset with a column of integers or `ClassLabel`, and None; or as it was, and why that is impossible.

    Words become the classes of a `ClassLabel`, in alphabetical order; so do booleans. Texts and floats that are whole
    numbers become integers. Missing labels stay missing.

    Args:
        dataset (`Dataset`): The rows.
        column (`str`): Name of the column.
        must (`bool`): Whether the user named the column. If not, texts that differ from image to image are no words.
    """
    feature = dataset.features[column]
    problem = label_problem(feature)
    if problem is not None or isinstance(feature, ClassLabel):
        return dataset, problem
    values = _column(dataset, column)
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
        known = values.drop_null()
        if not pc.all(pc.equal(known, pc.round(known))).as_py() and len(known):
            first = next(value for value in known.to_pylist() if value != round(value))
            return dataset, f"it holds numbers that are not whole, such as {first:g}"
        values = pc.cast(values, pa.int64())
    elif pa.types.is_boolean(values.type):
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
    if all(name.isdecimal() and str(int(name)) == name and int(name) < 2**63 for name in names):
        return _replaced(dataset, column, pc.cast(values, pa.int64()), Value("int64")), None
    if not must and len(values) > 4 and len(names) * IMAGES_PER_WORD > len(values):
        return dataset, f"it holds {len(names)} different texts for {len(values)} images"
    number = {name: index for index, name in enumerate(names)}
    numbers = pa.array([None if value is None else number[value] for value in values.to_pylist()], pa.int64())
    return _replaced(dataset, column, numbers, ClassLabel(names=names)), None


def json_labels(dataset: Dataset, column: str, key: str | None, source: str) -> list[Any] | None:
    """
    Return a value of the JSON texts in a column, for every row, or None if no row has it.

    Args:
        dataset (`Dataset`): The rows.
        column (`str`): Column of JSON texts.
        key (`str`, *optional*): Key of the value. By default, the first usual name of a label.
        source (`str`): Name of the dataset, for the message.

    Raises:
        ValueError: If a text is not JSON.
    """
    try:
        records = [None if text is None else json.loads(text) for text in dataset[column]]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: the .json of a sample cannot be read: {error}") from error
    dictionaries = [record for record in records if isinstance(record, dict)]
    keys = [key] if key is not None else [name for name in LABEL_COLUMNS if any(name in one for one in dictionaries)]
    if not keys or not any(keys[0] in one for one in dictionaries):
        return None
    return [record.get(keys[0]) if isinstance(record, dict) else None for record in records]


def text_labels(values: Sequence[Any]) -> pa.Array:
    """Return values of JSON as texts; those that are no text, number or boolean are missing."""
    return pa.array([str(value) if isinstance(value, str | int | float | bool) else None for value in values])


def labeled_rows(dataset: Dataset) -> tuple[Dataset, int]:
    """Return the rows of a dataset that have a label, and the number of those that have none."""
    labels = _column(dataset, "label")
    known = pc.and_(pc.is_valid(labels), pc.greater_equal(pc.fill_null(labels, -1), 0))
    rows = pc.indices_nonzero(known).to_pylist()
    return (dataset, 0) if len(rows) == len(dataset) else (dataset.select(rows), len(dataset) - len(rows))


def same_classes(first: Dataset, second: Dataset, names: tuple[str, str]) -> tuple[Dataset, Dataset, str | None]:
    """
    Number the classes of two datasets alike, by their names.

    Args:
        first, second (`Dataset`): Labeled rows. Those of the first vote for those of the second.
        names (`tuple[str, str]`): What to call them in messages.

    Returns:
        Both datasets, and a line about classes of the second that the first lacks, if there are any.

    Raises:
        ValueError: If one has words and the other numbers, or they have no class in common.
    """
    labels = [dataset.features["label"] for dataset in (first, second)]
    worded = [isinstance(label, ClassLabel) for label in labels]
    if worded[0] != worded[1]:
        words, numbers = names if worded[0] else names[::-1]
        raise ValueError(f"the classes of {words} have names and those of {numbers} are numbers: label both alike")
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
        raise ValueError(
            f"{names[1]} have other classes than {names[0]}: {_some(shown)}, which none of {names[0]} belongs to"
        )
    if not shown:
        return first, second, None
    return first, second, f"no image of {names[0]} is of class {_some(shown)}: {names[1]} of these count as wrong"


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


def _some(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:3])) + (f" and {len(values) - 3} more" if len(values) > 3 else "")
