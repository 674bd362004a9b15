"""Build the model to train and its image processor, or load them, and load frozen teachers."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...data.images import keep_value_range
from ...utils.config_overrides import check_overrides, parse_overrides
from ...utils.console import first_line
from ...utils.loading import check_complete, check_depth, check_finite, load_config
from ..teachers import FeatureTeacher, load_teacher
from .options import DataArguments, ModelArguments


logger = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT", bound=PreTrainedConfig)
ModelT = TypeVar("ModelT", bound=PreTrainedModel)
ProcessorT = TypeVar("ProcessorT", bound=BaseImageProcessor)

# Fields that may differ from those of the weights to continue from.
FREE_FIELDS = {"hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "initializer_range"}


class TeacherArguments(Protocol):
    """Training options that name a teacher."""

    teacher_model_name_or_path: str | None

    @property
    def teacher_feature(self) -> str:
        """Which feature of the teacher to use."""


@contextmanager
def named(option: str, source: str) -> Iterator[None]:
    """Add the name of the option to an `OSError` that reports that `source` is neither on disk nor on the Hub."""
    try:
        yield
    except OSError as error:
        first = first_line(error)
        raise OSError(
            f"{option} {source}: no such folder, and nothing could be loaded from the Hub ({first})"
        ) from error


def load_named_teacher(
    args: TeacherArguments, model_args: ModelArguments, config: PreTrainedConfig, **options: Any
) -> FeatureTeacher:
    """
    Load the teacher of a run.

    Args:
        args (`TeacherArguments`): Training options.
        model_args (`ModelArguments`): Where downloads are kept, and the access token for the Hub.
        config (`PreTrainedConfig`): Configuration of the student, whose patches get one feature each.
        **options: Passed on to [`~hf_mim.training.teachers.load_teacher`].

    Raises:
        ValueError, OSError: If there is no such model, or it does not fit the student.
    """
    source = args.teacher_model_name_or_path
    assert source is not None
    hub: dict[str, Any] = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    with named("teacher_model_name_or_path", source):
        return load_teacher(
            source, config.grid_size, args.teacher_feature, num_channels=config.num_channels, **options, **hub
        )


def pretraining_config(
    args: ModelArguments,
    config_class: type[ConfigT],
    native_class: type[PreTrainedConfig] | None = None,
    shared_fields: tuple[str, ...] = (),
    **fixed: Any,
) -> ConfigT:
    """
    Build the configuration of the model to train. If it continues from a model, only the configuration is read here.

    Args:
        args (`ModelArguments`): Model options.
        config_class (`type`): Configuration class of the method.
        native_class (`type`, *optional*): Configuration class of the transformers encoders that the method can
            continue from.
        shared_fields (`tuple[str]`, defaults to `()`): Fields of both classes that determine the encoder.
        **fixed: Fields that the run sets in a new model. `config_overrides` takes precedence.

    Raises:
        ValueError: If fields contradict each other, or the model to continue from is of another type or size, or is
            an encoder with a feature that the encoder of the method lacks.
    """
    overrides = check_overrides(parse_overrides(args.config_overrides), config_class)
    if args.image_size is not None:
        overrides["image_size"] = args.image_size[0] if len(args.image_size) == 1 else args.image_size
    if args.patch_size is not None:
        overrides["patch_size"] = args.patch_size
    if args.model_name_or_path is None:
        return _checked(config_class, fixed | overrides)

    config: Any = load_config(args.model_name_or_path, **args.hub_options)
    classes = (config_class,) if native_class is None else (config_class, native_class)
    if not isinstance(config, classes):
        raise ValueError(
            f"{args.model_name_or_path} is a model of type {config.model_type!r}; {config_class.model_type} continues "
            f"from {' or '.join(repr(known.model_type) for known in classes)}"
        )
    is_native = not isinstance(config, config_class)
    if is_native:
        # Raises an error for features that the encoder of the method lacks.
        config = config_class.from_pretrained(args.model_name_or_path, **args.hub_options)
    fixed_by_weights = set(shared_fields) - FREE_FIELDS
    other = sorted(name for name in overrides if name in fixed_by_weights and overrides[name] != getattr(config, name))
    if other:
        raise ValueError(f"{args.model_name_or_path} was trained with another {other[0]} than {overrides[other[0]]}")
    if is_native:
        return _checked(config_class, {name: getattr(config, name) for name in shared_fields} | fixed | overrides)
    # It refers to code files that are not in the folder of this run.
    vars(config).pop("auto_map", None)
    config.update(overrides)
    config.validate_architecture()
    return config


def _checked(config_class: type[ConfigT], fields: dict[str, Any]) -> ConfigT:
    check_depth(fields)
    try:
        return config_class(**fields)
    except StrictDataclassError as error:
        raise ValueError(f"configuration of the model: {error.__cause__ or error}") from error


def load_for_pretraining(args: ModelArguments, config: PreTrainedConfig, model_class: type[ModelT]) -> ModelT:
    """
    Build a new model, or load the model at `model_name_or_path`.

    If that is an encoder only, such as the root of a finished run, its heads are new. transformers reports them as
    missing.

    Args:
        args (`ModelArguments`): Model options.
        config (`PreTrainedConfig`): Configuration of the model.
        model_class (`type`): Class of the pre-training model.

    Raises:
        ValueError: If weights are missing or have other shapes.
    """
    source, hub = args.model_name_or_path, args.hub_options
    if source is None:
        return model_class._from_config(config, attn_implementation=args.attn_implementation)
    # The encoder of a pre-training model is named after the method. A tokenizer has no part of that name.
    prefix = f"{model_class.base_model_prefix}."
    loaded: Any
    try:
        loaded = model_class.from_pretrained(
            source, config=config, attn_implementation=args.attn_implementation, output_loading_info=True, **hub
        )
    except RuntimeError as error:
        raise ValueError(f"config_overrides do not fit the weights of {source}: {error}") from error
    model: ModelT
    model, info = loaded
    needed = [name for name in model.state_dict() if name.startswith(prefix)] or list(model.state_dict())
    check_complete(source, set(info["missing_keys"]) & set(needed), unused=("mask_token",))
    check_finite(source, model)
    return model.float()


def build_image_processor(
    processor_class: type[ProcessorT],
    config: PreTrainedConfig,
    data_args: DataArguments,
    model_args: ModelArguments,
    mean: tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN),
    std: tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD),
) -> ProcessorT:
    """
    Build the image processor for evaluation and inference: resize, center crop, normalization.

    Args:
        processor_class (`type`): Class of the image processor.
        config (`PreTrainedConfig`): Configuration of the model.
        data_args (`DataArguments`): Its `image_mean` and `image_std` take precedence, followed by the values that the
            model to continue from was trained with.
        model_args (`ModelArguments`): Names the model to continue from.
        mean (`tuple[float]`, defaults to ImageNet's): Default for RGB images. The default for others is 0.5.
        std (`tuple[float]`, defaults to ImageNet's): As for `mean`.

    Raises:
        ValueError: If the numbers of means or standard deviations differ from the number of channels.
    """
    height, width = (side * config.patch_size for side in config.grid_size)
    channels = config.num_channels
    if channels != 3:
        mean, std = (0.5,) * channels, (0.5,) * channels
    if model_args.model_name_or_path is not None:
        try:
            before = AutoImageProcessor.from_pretrained(model_args.model_name_or_path, **model_args.hub_options)
            mean, std = before.image_mean, before.image_std
        except OSError:
            logger.warning(f"{model_args.model_name_or_path} has no image processor: check --image_mean, --image_std")
    image_mean, image_std = list(data_args.image_mean or mean), list(data_args.image_std or std)
    for name, values in (("image_mean", image_mean), ("image_std", image_std)):
        if len(values) != channels:
            raise ValueError(f"{name} must have one number for each of the {channels} channels, got {len(values)}")
    processor = processor_class(
        size={"shortest_edge": data_args.resize_size or round(min(height, width) * 256 / 224)},
        crop_size={"height": height, "width": width},
        image_mean=image_mean,
        image_std=image_std,
        do_convert_rgb=channels == 3,
    )
    keep_value_range(processor, data_args.value_range)
    return processor
