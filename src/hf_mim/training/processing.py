"""The image processor of a run, which knows what the views are normalised with."""

import logging

from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedConfig
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .pretrain_arguments import DataArguments, ModelArguments


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
