"""Choose the columns of a table that are images and labels."""

from collections.abc import Set
from functools import partial
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value

from .labels import LABEL_COLUMNS, NUMBER, LabelError, json_labels, label_problem, some, text_labels, to_classes


IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "images", "picture", "photo")


def keep_image_and_label(
    dataset: Dataset | IterableDataset,
    image_column: str | None,
    label_column: str | None,
    known_classes: Set[str],
    source: str,
    notes: list[str],
) -> Dataset | IterableDataset:
    """
    Return a dataset with the columns `image` and, if there are labels, `label`.

    Args:
        dataset (`Dataset` or `IterableDataset`): Any columns.
        image_column, label_column (`str`, *optional*): Their names, if the user gives them.
        known_classes (`Set[str]`): As for [`~hf_mim.data.labels.to_classes`].
        source (`str`): Name of the dataset, for messages.
        notes (`list[str]`): Lines about columns that are not taken are appended.

    Raises:
        LabelError: If the column of the labels does not exist or cannot be used.
        ValueError: If that of the images does not exist or cannot be guessed.
    """
    if dataset.features is None:
        dataset = dataset._resolve_features()
    features = dataset.features
    wanted = label_column
    image_column = find_image_column(features, image_column)
    if isinstance(dataset, Dataset) and "json" in features and (wanted is None or wanted not in features):
        if wanted is not None or not any(name in features for name in LABEL_COLUMNS):
            dataset, wanted = _labels_of_json(dataset, wanted, source, notes)
            features = dataset.features
    label_column = find_label_column(features, wanted, image_column, notes)
    if label_column is not None and isinstance(dataset, Dataset):
        dataset, problem = to_classes(dataset, label_column, wanted is not None, known_classes)
        if problem is not None:
            if wanted is not None:
                raise LabelError(f"{source}: label_column_name {label_column!r} cannot be the labels: {problem}")
            notes.append(f"column {label_column!r} is not taken for labels: {problem}")
            label_column = None
    elif label_column is not None:
        dataset, label_column = _stream_labels(dataset, label_column, notes)
    dataset = dataset.select_columns([column for column in (image_column, label_column) if column is not None])
    names = {image_column: "image", label_column: "label"}
    renamed = {old: new for old, new in names.items() if old is not None and old != new}
    if renamed:
        dataset = dataset.rename_columns(renamed)
    return dataset.cast_column("image", Image(decode=False))


def _labels_of_json(dataset: Dataset, key: str | None, source: str, notes: list[str]) -> tuple[Dataset, str | None]:
    """Return the dataset with the labels of its column `json` in their own column, and the name of the column."""
    found, labels, keys = json_labels(dataset, "json", key, source)
    dataset = dataset.remove_columns("json")
    if labels is None:
        if keys and key is None:
            notes.append(f"no labels: the .json has {', '.join(keys)}; label_column_name chooses one")
        if key is not None:
            known = [*dataset.column_names, *keys]
            raise LabelError(
                f"label_column_name {key!r} does not exist; the columns and the keys of .json are {known}"
            )
        return dataset, None
    texts, problem = text_labels(labels)
    if problem is None:
        name = found or "json"
        return dataset.add_column(name, texts), name
    if key is not None:
        raise LabelError(f"{source}: label_column_name {key!r} cannot be the labels: {problem}")
    notes.append(f"the labels of the .json are not taken: {problem}")
    return dataset, None


def _stream_labels(dataset: IterableDataset, column: str, notes: list[str]) -> tuple[IterableDataset, str | None]:
    """Return a stream with a column of whole numbers or a `ClassLabel`; without the column if it has neither."""
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel) or feature.dtype.startswith(("int", "uint")):
        return dataset, column
    first = next(iter(dataset.select_columns([column])), {column: None})[column]
    if not (isinstance(first, str) and NUMBER.fullmatch(first.strip())):
        held = "words" if feature.dtype.endswith("string") else feature.dtype
        notes.append(f"column {column!r} has {held}, of which a stream makes no labels")
        return dataset, None
    features = Features({**dataset.features, column: Value("int64")})
    return dataset.map(partial(_to_number, column=column), features=features), column


def _to_number(example: dict[str, Any], column: str) -> dict[str, Any]:
    text = example[column]
    is_number = text is not None and NUMBER.fullmatch(text.strip())
    return {**example, column: int(text) if is_number else None}


def features_of(dataset: Dataset | IterableDataset) -> Features:
    """Return the types of the columns, for which a stream may have to be opened."""
    return dataset.features if dataset.features is not None else dataset._resolve_features().features


def find_image_column(features: Features, wanted: str | None) -> str:
    """Return the column of the images: the one the user names, the only one, or that with a usual name."""
    _check_exists(features, "image_column_name", wanted)
    if wanted is not None:
        if not _can_hold_images(features[wanted]):
            raise ValueError(f"image_column_name {wanted!r} holds {features[wanted]}, not images")
        return wanted
    candidates = [name for name, feature in features.items() if isinstance(feature, Image)]
    if len(candidates) == 1:
        return candidates[0]
    candidates = candidates or [name for name, feature in features.items() if _can_hold_images(feature)]
    for name in IMAGE_COLUMNS:
        if name in candidates:
            return name
    raise ValueError(f"cannot guess which column has the images: set image_column_name to one of {list(features)}")


def find_label_column(features: Features, wanted: str | None, image_column: str, notes: list[str]) -> str | None:
    """Return the column of the labels, or None; say which columns might be them."""
    _check_exists(features, "label_column_name", wanted)
    if wanted is not None:
        problem = label_problem(features[wanted])
        if problem is not None:
            raise LabelError(f"label_column_name {wanted!r} cannot be the labels: {problem}")
        return wanted
    lower = {name.lower(): name for name in reversed(list(features))}
    for name in (lower[word] for word in LABEL_COLUMNS if word in lower):
        problem = label_problem(features[name])
        if problem is None:
            return name
        notes.append(f"column {name!r} is not taken for labels: {problem}")
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(classes) == 1:
        return classes[0]
    others = [name for name, feature in features.items() if name != image_column and label_problem(feature) is None]
    if classes or others:
        notes.append(f"no labels: {some(classes or others)} might be them; label_column_name chooses one")
    return None


def _check_exists(features: Features, option: str, column: str | None) -> None:
    if column is not None and column not in features:
        message = f"{option} {column!r} does not exist; the columns are {list(features)}"
        raise LabelError(message) if option == "label_column_name" else ValueError(message)


def _can_hold_images(feature: Any) -> bool:
    """Return True for encoded bytes, paths of files, or {"bytes", "path"}."""
    if isinstance(feature, Value):
        return feature.dtype in ("binary", "large_binary", "string", "large_string")
    return isinstance(feature, Image) or (isinstance(feature, dict) and {"bytes", "path"} == set(feature))
