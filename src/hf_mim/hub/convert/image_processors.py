"""The transforms with which the original codes evaluate, beside the converted models."""

from collections.abc import Mapping
from typing import Any

from transformers import BaseImageProcessor, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from ...modeling.configuration_dbot import DBotConfig
from ...modeling.configuration_ibot import IBotConfig
from ...modeling.configuration_ibot_swin import IBotSwinConfig
from ...modeling.configuration_vqkd import VQKDConfig
from ...modeling.image_processing_pil_mim import Beitv2ImageProcessorPil, DBotImageProcessorPil, IBotImageProcessorPil


IMAGENET = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
# What the tokenizer sees of values x in 0..1, by `process_type`: (x - mean) / deviation. "dall-e" does nothing.
TOKENIZER_SCALES = {"default": ([0.5] * 3, [0.5] * 3), "imagenet_norm": IMAGENET, "dall-e": ([0.0] * 3, [1.0] * 3)}


def original_image_processor(config: PreTrainedConfig, args: Mapping[str, Any]) -> BaseImageProcessor:
    """
    Return the original's evaluation transform: resize, center crop and normalization at the model's image size.

    - iBOT: the crop is 224/256 of the resized image. Models of `run_class_finetuning.py` are resized bilinearly, are
      not cropped from 384 pixels on, and have an option for the mean and standard deviation of ImageNet.
    - BEiT v2 and VQ-KD: the crop is 7/8 of the resized image, from 384 pixels on all of it (`datasets.py`); ImageNet
      mean and deviation for BEiT v2, unless the run that wrote the file was without
      `--imagenet_default_mean_and_std`, and for the tokenizer what its `--process_type` says: -1..1 by default.
    - dBOT: the crop is 7/8 of the resized image, above 224 pixels all of it (`util/datasets.py`).

    Args:
        config (`PreTrainedConfig`): Configuration of the model, one of ours.
        args (`Mapping`): Options of the original run, if the checkpoint holds them.

    Raises:
        ValueError: If the `process_type` is not one of the original's.
    """
    height, width = (side * config.patch_size for side in config.grid_size)
    side = min(height, width)
    if isinstance(config, (IBotConfig, IBotSwinConfig)):
        settings: dict[str, Any] = {"size": {"shortest_edge": round(side * 256 / 224)}}
        if "crop_pct" in args:
            share = args["crop_pct"] or (224 / 256 if side < 384 else 1.0)
            settings |= {"size": {"shortest_edge": int(side / share)}, "resample": PILImageResampling.BILINEAR}
            if not args.get("imagenet_default_mean_and_std", True):
                settings["image_mean"] = settings["image_std"] = [0.5, 0.5, 0.5]
        return IBotImageProcessorPil(crop_size={"height": height, "width": width}, **settings)

    scale = IMAGENET
    processor_class: type[BaseImageProcessor]
    if isinstance(config, DBotConfig):
        processor_class, share = DBotImageProcessorPil, 224 / 256 if side <= 224 else 1.0
    else:
        processor_class, share = Beitv2ImageProcessorPil, 224 / 256 if side < 384 else 1.0
        share = args.get("crop_pct") or share
        if isinstance(config, VQKDConfig):
            kind = args.get("process_type", "default")
            if kind not in TOKENIZER_SCALES:
                known = ", ".join(TOKENIZER_SCALES)
                raise ValueError(f"the tokenizer saw images of process_type {kind!r}, which is none of {known}")
            scale = TOKENIZER_SCALES[kind]
        elif args.get("imagenet_default_mean_and_std") is False:
            scale = TOKENIZER_SCALES["default"]
    if config.num_channels != 3:
        scale = ([0.5] * config.num_channels,) * 2
    mean, deviation = scale
    return processor_class(
        size={"shortest_edge": int(side / share)},
        crop_size={"height": height, "width": width},
        image_mean=list(mean),
        image_std=list(deviation),
        do_convert_rgb=config.num_channels == 3,
    )
