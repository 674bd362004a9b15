"""Convert official iBOT weights of a Swin Transformer (SPEC section 7 of the original code)."""

import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ...modeling.configuration_ibot_swin import IBotSwinConfig
from ...modeling.modeling_ibot_swin import IBotSwinForImageClassification, IBotSwinForPreTraining, IBotSwinModel
from . import ibot
from .beitv2 import relative_position_index
from .ibot import assemble, official_name, split_parts
from .renaming import checked_config, count_blocks, left_behind, load_strictly, needed, original_name, rename_tensors


NAMES = {
    "masked_embed": "embeddings.mask_token",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "patch_embed.norm": "embeddings.norm",
    "norm": "layernorm",
}
BLOCK_NAMES = {
    "attn.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
}
INDEX = ".attn.relative_position_index"
# Image size in pixels that is assumed if the windows do not determine it.
IMAGE_SIZE = 224


def matches(weights: Mapping[str, Tensor]) -> bool:
    """
    Check whether the tensors are those of iBOT with a Swin Transformer: an encoder alone, with its projection head, or
    with a classifier.

    Other Swin Transformers can have the same names. No tensor shows the epsilon of their norms, so that iBOT's is
    assumed.
    """
    return {"patch_embed.proj.weight", "patch_embed.norm.weight", "layers.0.blocks.0.attn.qkv.weight"} <= set(weights)


def shares_names(weights: Mapping[str, Tensor]) -> bool:
    """Return False: no other family has models with these names."""
    return False


def options(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the configuration that are known from the options of the original run."""
    # The original does not pass `--drop_path` to a Swin Transformer.
    return {name: value for name, value in ibot.options(args).items() if name != "drop_path_rate"}


def convert(
    weights: Mapping[str, Tensor], name: str, num_attention_heads: int | None, overrides: Mapping[str, Any]
) -> PreTrainedModel:
    """
    Build the most complete iBOT model that the weights allow, in eval mode.

    Window sizes and numbers of heads come from the shapes of the relative position tables. They also determine the
    image size if a window is as large as the feature map of its stage, as in the released Swin-T/14. Otherwise, 224
    is assumed. The `relative_position_index` of a block follows from its window and is left behind. Mask token and
    magnitudes are handled as in [`~hf_mim.hub.convert.ibot.convert`].

    Args:
        weights (`Mapping[str, Tensor]`): One network of an `OfficialCheckpoint`.
        name (`str`): File name, for messages.
        num_attention_heads (`int`, *optional*): Must be None: each stage has its own number, which the tables give.
        overrides (`Mapping`): Fields of [`IBotSwinConfig`].

    Returns:
        `PreTrainedModel`: An [`IBotSwinForPreTraining`], [`IBotSwinForImageClassification`] or [`IBotSwinModel`].

    Raises:
        ValueError: If a tensor is missing, left over or has the wrong shape, if a `relative_position_index` does not
            match its window, if the classifier needs features that [`IBotSwinForImageClassification`] does not
            compute, or if `num_attention_heads` is given.
    """
    if num_attention_heads is not None:
        raise ValueError(f"{name} tells its attention heads, which differ from stage to stage: leave the number out")
    parts = split_parts(weights)
    fields, windows = _encoder_fields(parts["encoder"], name)
    for key in fnmatch.filter(parts["encoder"], f"*{INDEX}"):
        _check_index(key, parts["encoder"].pop(key), windows, name)
    encoder = rename_tensors(parts["encoder"], *_names(len(windows)))
    mask_token = encoder.get("embeddings.mask_token", torch.zeros(1, fields["embed_dim"]))
    encoder["embeddings.mask_token"] = mask_token.unsqueeze(0)
    classes = (IBotSwinModel, IBotSwinForPreTraining, IBotSwinForImageClassification)
    width = fields["embed_dim"] * 2 ** (len(windows) - 1)
    model_class, fields, tensors = assemble(classes, fields, width, encoder, parts, name, overrides)
    config = checked_config(IBotSwinConfig, fields, overrides)
    return load_strictly(model_class, config, tensors, name, lambda ours: official_swin_name(ours, len(windows)))


def dropped(networks: Mapping[str, Mapping[str, Tensor]], config: PreTrainedConfig) -> list[str]:
    """Describe what is left behind or added, one line for each kind of tensor."""
    weights = next(iter(networks.values()))
    indices = left_behind(weights, f"layers.*{INDEX}", "left behind, follows from the size of the windows")
    return ibot.dropped(networks, config) + indices


def official_swin_name(ours: str, stages: int) -> str:
    """Return the official name of a tensor of ours; for q, k and v, the name of the joint projection."""
    name = ours.removeprefix("ibot.")
    return official_name(name) if name.startswith(("head.", "classifier.")) else original_name(name, *_names(stages))


def _names(stages: int) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Return `names`, `stacks` and `block_names` for `rename_tensors`."""
    parts = [
        f"layers.{stage}.{part}" for stage in range(stages) for part in ("downsample.norm", "downsample.reduction")
    ]
    stacks = [f"layers.{stage}.blocks" for stage in range(stages)]
    ours = [{name: f"encoder.{name}" for name in names} for names in (parts, stacks)]
    return NAMES | ours[0], ours[1], BLOCK_NAMES


def _encoder_fields(weights: Mapping[str, Tensor], name: str) -> tuple[dict, list[int]]:
    """Return the fields of the configuration and the window size of each stage."""
    depths, heads, windows = [], [], []
    for stage in range(count_blocks(weights, "layers", name)):
        table = needed(weights, f"layers.{stage}.blocks.0.attn.relative_position_bias_table", 2, name)
        depths.append(count_blocks(weights, f"layers.{stage}.blocks", name))
        heads.append(table.shape[1])
        windows.append((math.isqrt(len(table)) + 1) // 2)
    embed_dim, channels, patch_size = needed(weights, "patch_embed.proj.weight", 4, name).shape[:3]
    fields = {
        "embed_dim": embed_dim,
        "depths": depths,
        "num_heads": heads,
        "window_size": max(windows),
        "mlp_ratio": len(needed(weights, "layers.0.blocks.0.mlp.fc1.weight", 2, name)) / embed_dim,
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in weights,
        "patch_size": patch_size,
        "num_channels": channels,
        "image_size": IMAGE_SIZE,
        # The default of the original's constructors.
        "drop_path_rate": 0.2 if depths == [2, 2, 18, 2] else 0.1,
    }
    for stage, window in enumerate(windows):
        if window < max(windows):
            fields["image_size"] = window * 2**stage * patch_size
            break
    return fields, windows


def _check_index(key: str, index: Tensor, windows: list[int], name: str):
    window = windows[int(key.split(".")[1])]
    # BEiT's index has the CLS token first.
    if not torch.equal(index.cpu(), relative_position_index((window, window))[1:, 1:]):
        raise ValueError(f"{name}: {key} is not the index of a window of {window} x {window} patches")
