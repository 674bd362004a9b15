"""Load models and image processors from a folder or the Hub, with nothing missing and errors of one line."""

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from .console import first_line


ModelT = TypeVar("ModelT", bound=PreTrainedModel)

# Weights that encoders often come without and that no feature depends on.
UNUSED_WEIGHTS = ("mask_token", "pooler.")


def find_source(source: str | Path, operand: str = "MODEL") -> str:
    """
    Return the folder or Hub id to give to `from_pretrained`, with `~` expanded.

    Args:
        source (`str` or `Path`): Folder or Hub id, as the user wrote it.
        operand (`str`, defaults to `"MODEL"`): Name of the command-line argument, for the message.

    Raises:
        ValueError: If `source` is written as a path and there is no such folder. Without this check, transformers
            would report it as a malformed Hub id.
    """
    path = os.path.expanduser(source)
    if path.startswith(("/", ".", "~")) and not Path(path).is_dir():
        raise ValueError(f"{source}: there is no such folder; {operand} is a folder or a model id of the Hub")
    return path


def load_config(source: str | Path, **options: Any) -> PreTrainedConfig:
    """
    Load the configuration of a model.

    Args:
        source (`str` or `Path`): Folder or Hub id.
        **options: Passed on to `from_pretrained`.

    Raises:
        ValueError: If there is none.
    """
    with _one_line_errors(source, "model"):
        return AutoConfig.from_pretrained(source, **options)


def load_image_processor(source: str | Path, **options: Any) -> BaseImageProcessor:
    """
    Load the image processor of a model, on Pillow unless `backend` says otherwise.

    transformers alone would take torchvision where it is installed, whose resized pixels differ slightly. The same
    command would then print other numbers, and k-NN accuracies other than the run's own, which uses Pillow.

    Args:
        source (`str` or `Path`): Folder or Hub id.
        **options: Passed on to `from_pretrained`, such as `backend="torchvision"`.

    Raises:
        ValueError: If there is none.
    """
    with _one_line_errors(source, "image processor"):
        return AutoImageProcessor.from_pretrained(source, **{"backend": "pil", **options})


@overload
def load_model(
    source: str | Path, model_class: type[ModelT], unused: Sequence[str] = UNUSED_WEIGHTS, **options: Any
) -> ModelT: ...


@overload
def load_model(
    source: str | Path, model_class: type = AutoModel, unused: Sequence[str] = UNUSED_WEIGHTS, **options: Any
) -> PreTrainedModel: ...


def load_model(
    source: str | Path,
    model_class: Any = AutoModel,
    unused: Sequence[str] = UNUSED_WEIGHTS,
    **options: Any,
) -> PreTrainedModel:
    """
    Load a model and refuse a checkpoint without all of its weights, which transformers would fill with random numbers.

    Args:
        source (`str` or `Path`): Folder or Hub id.
        model_class (`type`, defaults to `AutoModel`): Class of the model, or one of the Auto classes.
        unused (`Sequence[str]`): Weights whose names contain one of these may be missing.
        **options: Passed on to `from_pretrained`, such as `dtype` or `subfolder`.

    Raises:
        ValueError: If there is no model, or the checkpoint lacks weights.
    """
    place = f"{source}/{options['subfolder']}" if "subfolder" in options else f"{source}"
    with _one_line_errors(place, "model"), without_load_report():
        model, report = model_class.from_pretrained(source, output_loading_info=True, **options)
    check_complete(place, report["missing_keys"], unused)
    return model


def load_model_and_processor(
    source: str | Path,
    model_class: type = AutoModel,
    unused: Sequence[str] = UNUSED_WEIGHTS,
    operand: str = "MODEL",
    **options: Any,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    Load a model and its image processor, as [`load_model`] and [`load_image_processor`] do.

    Args:
        source (`str` or `Path`): Folder or Hub id, as the user wrote it.
        model_class, unused, **options: As for [`load_model`].
        operand (`str`, defaults to `"MODEL"`): As for [`find_source`].

    Raises:
        ValueError: If there is no such folder, no model or no image processor, or weights are missing.
    """
    name = find_source(source, operand)
    # The two small files first: reading the weights may take minutes.
    load_config(name)
    image_processor = load_image_processor(name)
    return load_model(name, model_class, unused, **options), image_processor


def check_complete(source: str | Path, missing: Collection[str], unused: Sequence[str] = UNUSED_WEIGHTS) -> None:
    """
    Refuse a checkpoint without all the weights that are used.

    Args:
        source (`str` or `Path`): Where it comes from, for the message.
        missing (`Collection[str]`): `missing_keys` of transformers' loading report.
        unused (`Sequence[str]`): Weights whose names contain one of these may be missing.

    Raises:
        ValueError: If others are missing.
    """
    needed = sorted(name for name in missing if not any(part in name for part in unused))
    if needed:
        raise ValueError(f"{source}: the checkpoint lacks {len(needed)} weights, such as {needed[0]}")


@contextmanager
def without_load_report() -> Iterator[None]:
    """
    Keep transformers from printing its table of missing and unexpected weights.

    For callers that check `output_loading_info` themselves: most encoders come without a pooler, and many with a head
    that is not wanted.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return record.module != "loading_report"

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


@contextmanager
def _one_line_errors(source: str | Path, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: no {what} can be loaded ({first_line(error)})") from error
