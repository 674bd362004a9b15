"""Load models and image processors from a folder or the Hub, with nothing missing and errors of one line."""

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from huggingface_hub import HfApi, constants, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import CONFIG_NAME

from .console import first_line


ModelT = TypeVar("ModelT", bound=PreTrainedModel)

# Beyond any model: building one of so many layers would take forever.
LARGEST_DEPTH = 10_000
# How long to wait for the Hub's answer whether it has a repository.
HUB_SECONDS = 10

# Weights that encoders often come without and that no feature depends on.
UNUSED_WEIGHTS = ("mask_token", "pooler.")


def find_source(source: str | Path, operand: str = "MODEL", token: str | None = None) -> str:
    """
    Return the folder or Hub id to give to `from_pretrained`, with `~` expanded.

    Args:
        source (`str` or `Path`): Folder or Hub id, as the user wrote it.
        operand (`str`, defaults to `"MODEL"`): Name of the command-line argument, for the message.
        token (`str`, *optional*): Access token for the Hub.

    Raises:
        ValueError: If `source` looks like a path and there is no such folder, or if the Hub has no such model or
            cannot be reached. Without this check, transformers would ask the Hub for half a minute.
    """
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise ValueError(f"{source}: {operand} is a folder or a model id of the Hub, and this is a file")
    if looks_like_path(path):
        raise ValueError(f"{source}: there is no such folder; {operand} is a folder or a model id of the Hub")
    if try_to_load_from_cache(path, CONFIG_NAME) is None:
        check_on_hub(path, "model", token)
    return path


def looks_like_path(name: str) -> bool:
    """
    Return whether a name that does not exist is a path rather than an id of the Hub.

    Ids are NAME or ORGANIZATION/NAME. `runs/cells` is a path if there is a folder `runs`.
    """
    first, *rest = name.split("/")
    if name.startswith(("/", ".", "~")) or name.endswith("/") or "\\" in name or len(rest) > 1:
        return True
    return bool(rest) and os.path.isdir(first)


def check_on_hub(repo_id: str, kind: str, token: str | None = None) -> None:
    """
    Ask the Hub once whether it has a repository.

    Args:
        repo_id (`str`): NAME or ORGANIZATION/NAME.
        kind (`str`): `"model"` or `"dataset"`.
        token (`str`, *optional*): Access token.

    Raises:
        ValueError: If it has none, or does not answer.
    """
    if is_offline_mode():
        return
    try:
        HfApi(token=token).repo_info(repo_id, repo_type=kind, timeout=HUB_SECONDS)
    except GatedRepoError as error:
        raise ValueError(
            f"{repo_id} is a gated {kind} of the Hub: accept its conditions on its page, then log in with "
            "`hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"there is neither a folder {repo_id} nor a {kind} {repo_id} of the Hub (for a private one, log in with "
            "`hf auth login`)"
        ) from error
    except HfHubHTTPError as error:
        raise ValueError(f"{repo_id}: the Hub answers: {first_line(error)}") from error
    except Exception as error:  # whatever the HTTP library raises without a connection
        if os.path.isdir(os.path.join(constants.HF_HUB_CACHE, f"{kind}s--{repo_id.replace('/', '--')}")):
            # An earlier download serves.
            return
        raise ValueError(
            f"there is no folder {repo_id}, and the Hub cannot be reached to look for a {kind} of that name "
            f"({first_line(error)})"
        ) from error


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
        # Before a configuration is built, which lists the layers.
        fields, _ = PreTrainedConfig.get_config_dict(source, **options)
        check_depth(fields)
        return AutoConfig.from_pretrained(source, **options)


def check_depth(fields: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a configuration asks for more layers than any model has."""
    for name, value in fields.items():
        if isinstance(value, int) and "layers" in name and value > LARGEST_DEPTH:
            raise ValueError(f"{name} must be at most {LARGEST_DEPTH}, got {value}")


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
        model, report = model_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, stored, wanted = mismatched[0]
        raise ValueError(
            f"{place}: the weights do not fit the configuration: {name} has the shape {[*stored]} in the file, and "
            f"config.json asks for {[*wanted]}"
        )
    check_complete(place, report["missing_keys"], unused)
    check_finite(place, model)
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


def check_finite(source: str | Path, model: PreTrainedModel) -> None:
    """
    Refuse a model with weights that are not finite.

    Args:
        source (`str` or `Path`): Where it comes from, for the message.
        model (`PreTrainedModel`): The model.

    Raises:
        ValueError: If a weight is NaN or infinite. The message names the tensor.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{source}: {name} holds {describe_not_finite(tensor)}; such a model computes nothing: use an earlier "
                "checkpoint"
            )


def describe_not_finite(tensor: torch.Tensor) -> str:
    """Return how many values of a tensor are NaN and infinite, for messages."""
    counts = {"NaN": int(tensor.isnan().sum()), "infinite": int(tensor.isinf().sum())}
    described = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"{described} of {tensor.numel()} values"


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
    except (TypeError, KeyError, AttributeError, IndexError, ZeroDivisionError, OverflowError) as error:
        # What config.json can make transformers raise, with values of other types.
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{source}: no {what} can be loaded, its files are damaged ({reason})") from error
    except RecursionError as error:
        raise ValueError(f"{source}: no {what} can be loaded, its files are nested too deeply") from error
    except (SafetensorError, StrictDataclassError) as error:
        raise ValueError(f"{source}: no {what} can be loaded ({first_line(error.__cause__ or error)})") from error
