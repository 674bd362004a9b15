"""Checks shared by all configurations, and the translation of transformers' configurations to ours."""

import math

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Beyond any model: larger values are mistakes, and would fill the memory or take forever.
LARGEST_DEPTH, LARGEST_SIZE = 10_000, 10_000_000

COMMON_FIELDS = (
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
)
VIT_FIELDS = (*COMMON_FIELDS, "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# Fields that our configurations share with configurations of transformers: iBOT and dBOT with ViT and ViTMAE, BEiT v2
# with BEiT, and iBOT's Swin with Swin.
SHARED_FIELDS = (*VIT_FIELDS, "qkv_bias")
SHARED_BEIT_FIELDS = (
    *VIT_FIELDS,
    "use_absolute_position_embeddings",
    "use_relative_position_bias",
    "use_shared_relative_position_bias",
    "layer_scale_init_value",
    "use_mean_pooling",
)
MAE_FIELDS = (
    *SHARED_FIELDS,
    "mask_ratio",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
)
SHARED_SWIN_FIELDS = (
    *COMMON_FIELDS,
    "embed_dim",
    "depths",
    "num_heads",
    "window_size",
    "mlp_ratio",
    "qkv_bias",
)
LABEL_FIELDS = ("id2label", "label2id", "problem_type")


def grid_of(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the rows and columns of patches in an image of `config.image_size`."""
    size = (config.image_size, config.image_size) if isinstance(config.image_size, int) else config.image_size
    return size[0] // config.patch_size, size[1] // config.patch_size


def check_counts(config: PreTrainedConfig, *names: str):
    """
    Raise `ValueError` for the first of the named fields that is below 1, and for values that no model has: a number
    that is not finite, an unknown activation, or a size that would fill any memory.
    """
    for name in config.__dataclass_fields__:
        value = getattr(config, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")
        largest = LARGEST_DEPTH if "layers" in name or name == "depths" else LARGEST_SIZE
        for size in value if isinstance(value, list | tuple) else (value,):
            if isinstance(size, int) and size > largest:
                raise ValueError(f"{name} must be at most {largest}, got {size}")
    if getattr(config, "hidden_act", None) not in ACT2FN and hasattr(config, "hidden_act"):
        raise ValueError(f"hidden_act must be one of {', '.join(ACT2FN)}, got {config.hidden_act!r}")
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


def check_rates(config: PreTrainedConfig, *names: str):
    """Raise `ValueError` for the first of the named fields that does not lie in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {getattr(config, name)}")


def check_heads(config: PreTrainedConfig, part: str = ""):
    """Raise `ValueError` unless `hidden_size` is a multiple of `num_attention_heads`; `part` is a prefix of both."""
    width, heads = getattr(config, f"{part}hidden_size"), getattr(config, f"{part}num_attention_heads")
    if width % heads:
        raise ValueError(f"{part}hidden_size ({width}) must be a multiple of {part}num_attention_heads ({heads})")


def check_image_size(config: PreTrainedConfig):
    """Raise `ValueError` unless `image_size` is one or two numbers, each a multiple of `patch_size`."""
    size = [config.image_size] if isinstance(config.image_size, int) else list(config.image_size)
    if not isinstance(config.image_size, int) and len(size) != 2:
        raise ValueError(f"image_size must be one number or (height, width), got {size}")
    if any(side < config.patch_size or side % config.patch_size for side in size):
        raise ValueError(f"image_size ({config.image_size}) must be a multiple of patch_size ({config.patch_size})")


def fields_from_native(
    fields: dict, config_class: type[PreTrainedConfig], native: dict[type[PreTrainedConfig], tuple[str, ...]]
) -> dict:
    """
    Return the fields for one of our configurations, read from a `config.json` of ours or of transformers' own model.

    Args:
        fields (`dict`): Content of the `config.json`.
        config_class (`type`): Our configuration class.
        native (`dict[type, tuple[str]]`): The configuration classes of transformers that can be translated, each with
            the names of the fields to copy.

    Returns:
        `fields` itself if the file belongs to `config_class`, otherwise a new dictionary with the copied fields.

    Raises:
        ValueError: If the file is of any other model type, or its patches are not square.
    """
    known = {native_class.model_type: native_class for native_class in native}
    model_type = fields.get("model_type", config_class.model_type)
    if model_type == config_class.model_type:
        return fields
    if model_type not in known:
        raise ValueError(
            f"a model of type {model_type!r} cannot be loaded as one of type {config_class.model_type!r}, only one of "
            f"type {' or '.join(map(repr, known))}"
        )
    source = known[model_type].from_dict(dict(fields))
    taken = {name: getattr(source, name) for name in (*native[known[model_type]], *LABEL_FIELDS, "dtype")}
    if not isinstance(source.patch_size, int):
        if source.patch_size[0] != source.patch_size[1]:
            raise ValueError(f"patches must be square, this {model_type} has patches of {source.patch_size} pixels")
        taken["patch_size"] = source.patch_size[0]
    if "ViTModel" in (source.architectures or []) and source.pooler_act != "linear":
        logger.warning(
            f"the pooler of this {model_type} (a linear layer and {source.pooler_act}), if there is one, is dropped: "
            "pooler_output is the CLS token here"
        )
    return taken | {"model_type": config_class.model_type}


__all__ = [
    "LABEL_FIELDS",
    "MAE_FIELDS",
    "SHARED_BEIT_FIELDS",
    "SHARED_FIELDS",
    "SHARED_SWIN_FIELDS",
    "VIT_FIELDS",
    "check_counts",
    "check_heads",
    "check_image_size",
    "check_rates",
    "fields_from_native",
    "grid_of",
]
