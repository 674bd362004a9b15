"""The model to train: a new one, or one to continue from."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoImageProcessor, BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...utils.config_overrides import check_overrides, parse_overrides
from ...utils.console import first_line
from ...utils.loading import check_complete
from ..arguments import MIMTrainingArguments
from ..teachers import FeatureTeacher, load_teacher
from .options import DataArguments, ModelArguments


# What trained weights leave open.
FREE_FIELDS = {"hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "initializer_range"}


@contextmanager
def named(option: str, source: str) -> Iterator[None]:
    """Where `source` can be neither found nor downloaded, the `OSError` says which option gave it."""
    try:
        yield
    except OSError as error:
        first = first_line(error)
        raise OSError(f"{option} {source}: no such folder, and nothing to be had from the Hub ({first})") from error


def load_named_teacher(
    args: MIMTrainingArguments, model_args: ModelArguments, config: PreTrainedConfig, **options
) -> FeatureTeacher:
    """The teacher that `args` name, on the student's grid; `options` go to [`load_teacher`]."""
    source = args.teacher_model_name_or_path
    hub = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    with named("teacher_model_name_or_path", source):
        return load_teacher(
            source, config.grid_size, args.teacher_feature, num_channels=config.num_channels, **options, **hub
        )


def pretraining_config(
    args: ModelArguments,
    config_class: type[PreTrainedConfig],
    native_class: type[PreTrainedConfig] | None = None,
    shared_fields: tuple[str, ...] = (),
    **fixed,
) -> PreTrainedConfig:
    """
    The configuration of the model to train; of a model to continue from, only its configuration is read.

    Args:
        args (`ModelArguments`): Where it comes from, and what it overrides.
        config_class (`type`): Configuration of the method.
        native_class (`type`, *optional*): That of plain encoders from which the method can continue.
        shared_fields (`tuple[str]`): Fields that decide the shapes of an encoder's weights, in both of them.
        **fixed: Fields of a new model that the run decides, unless `config_overrides` does.

    Raises:
        ValueError: If sizes do not fit together, or the weights to continue from are of another kind or size, or of a
            plain encoder that computes what the method's cannot.
    """
    overrides = check_overrides(parse_overrides(args.config_overrides), config_class)
    if args.image_size is not None:
        overrides["image_size"] = args.image_size[0] if len(args.image_size) == 1 else args.image_size
    if args.patch_size is not None:
        overrides["patch_size"] = args.patch_size
    if args.model_name_or_path is None:
        return _checked(config_class, fixed | overrides)

    config = AutoConfig.from_pretrained(args.model_name_or_path, **args.hub_options)
    classes = (config_class,) if native_class is None else (config_class, native_class)
    if not isinstance(config, classes):
        raise ValueError(
            f"{args.model_name_or_path} is a model of type {config.model_type!r}; {config_class.model_type} continues "
            f"from {' or '.join(repr(known.model_type) for known in classes)}"
        )
    is_native = not isinstance(config, config_class)
    if is_native:
        # Refuses what the method's encoder cannot compute.
        config = config_class.from_pretrained(args.model_name_or_path, **args.hub_options)
    fixed_by_weights = set(shared_fields) - FREE_FIELDS
    other = sorted(name for name in overrides if name in fixed_by_weights and overrides[name] != getattr(config, name))
    if other:
        raise ValueError(f"{args.model_name_or_path} has weights for another {other[0]} than {overrides[other[0]]}")
    if is_native:
        return _checked(config_class, {name: getattr(config, name) for name in shared_fields} | fixed | overrides)
    # It names files of code, which are not in the folder of this run.
    vars(config).pop("auto_map", None)
    config.update(overrides)
    config.validate_architecture()
    return config


def _checked(config_class: type[PreTrainedConfig], fields: dict) -> PreTrainedConfig:
    try:
        return config_class(**fields)
    except StrictDataclassError as error:
        raise ValueError(f"configuration of the model: {error.__cause__ or error}") from error


def load_for_pretraining(
    args: ModelArguments, config: PreTrainedConfig, model_class: type[PreTrainedModel]
) -> PreTrainedModel:
    """
    A new model, or the one at `model_name_or_path`.

    An encoder without what pre-training adds (ours, or a native one, such as the root of a finished run) gets it new,
    in the sizes of `config`; transformers reports it as missing.

    Raises:
        ValueError: For weights that do not fit or are not there.
    """
    source, hub = args.model_name_or_path, args.hub_options
    if source is None:
        return model_class._from_config(config, attn_implementation=args.attn_implementation)
    # The encoder in the model of a method is called after the method; a tokenizer has none of that name.
    prefix = f"{model_class.base_model_prefix}."
    try:
        model, info = model_class.from_pretrained(
            source, config=config, attn_implementation=args.attn_implementation, output_loading_info=True, **hub
        )
    except RuntimeError as error:
        raise ValueError(f"config_overrides do not fit the weights of {source}: {error}") from error
    needed = [name for name in model.state_dict() if name.startswith(prefix)] or list(model.state_dict())
    check_complete(source, set(info["missing_keys"]) & set(needed), unused=("mask_token",))
    return model.float()


logger = logging.getLogger(__name__)


def build_image_processor(
    processor_class: type[BaseImageProcessor],
    config: PreTrainedConfig,
    data_args: DataArguments,
    model_args: ModelArguments,
    mean: tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN),
    std: tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD),
) -> BaseImageProcessor:
    """
    The transform for evaluation and inference: resize, central crop, normalisation.

    Mean and standard deviation are those of the options, else those that the weights were trained with, else `mean`
    and `std` for RGB and 0.5 otherwise.

    Raises:
        ValueError: If there is not one mean and deviation per channel.
    """
    height, width = (side * config.patch_size for side in config.grid_size)
    channels = config.num_channels
    if channels != 3:
        mean = std = (0.5,) * channels
    if model_args.model_name_or_path is not None:
        try:
            before = AutoImageProcessor.from_pretrained(model_args.model_name_or_path, **model_args.hub_options)
            mean, std = before.image_mean, before.image_std
        except OSError:
            logger.warning(f"{model_args.model_name_or_path} has no image processor: check --image_mean, --image_std")
    mean, std = data_args.image_mean or mean, data_args.image_std or std
    for name, values in (("image_mean", mean), ("image_std", std)):
        if len(values) != channels:
            raise ValueError(f"{name} must have one number for each of the {channels} channels, got {len(values)}")
    return processor_class(
        size={"shortest_edge": data_args.resize_size or round(min(height, width) * 256 / 224)},
        crop_size={"height": height, "width": width},
        image_mean=list(mean),
        image_std=list(std),
        do_convert_rgb=channels == 3,
    )
