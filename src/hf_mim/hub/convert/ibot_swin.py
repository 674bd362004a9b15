"""Official iBOT weights with a Swin Transformer (SPEC section 7 of the original code) as models of this package."""

import fnmatch
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ...modeling.modeling_ibot_swin import IBotSwinForImageClassification, IBotSwinForPreTraining, IBotSwinModel
from .beitv2 import relative_position_index
from .ibot import assemble, ibot_options, official_name, split_parts
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
# Side in pixels of the images that the windows are made for, where their sizes do not tell.
IMAGE_SIZE = 224


def is_ibot_swin(keys: Collection[str]) -> bool:
    """
    Whether these official names are iBOT's with a Swin Transformer: an encoder alone, with its projection head, or
    with a classifier. Files of other Swin Transformers can have the same names: nothing in them tells their epsilon,
    which is then taken to be iBOT's.
    """
    return {"patch_embed.proj.weight", "patch_embed.norm.weight", "layers.0.blocks.0.attn.qkv.weight"} <= set(keys)


def ibot_swin_options(args: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of the run that wrote a checkpoint say about the configuration."""
    # The original does not hand on `--drop_path` to a Swin Transformer.
    return {name: value for name, value in ibot_options(args).items() if name != "drop_path_rate"}


def convert_ibot_swin(
    weights: Mapping[str, Tensor], name: str, num_attention_heads: int | None, overrides: Mapping[str, Any]
) -> IBotSwinForPreTraining | IBotSwinForImageClassification | IBotSwinModel:
    """
    The most complete iBOT model that these weights make, in eval mode.

    Windows and heads come from the shapes of the relative position tables. The size of the images is told by them
    where a window is as large as its stage's map, as in the released Swin-T/14; otherwise it is taken to be 224. The
    `relative_position_index` of a block follows from its window, and is left behind. Mask token and magnitudes are
    treated as by `convert_ibot`.

    Args:
        weights (`Mapping[str, Tensor]`): One network of an `OfficialCheckpoint`.
        name (`str`): File name, for messages.
        num_attention_heads (`int`, *optional*): Of no use: it differs from stage to stage, and the tables tell it.
        overrides (`Mapping`): Fields of [`IBotSwinConfig`].

    Raises:
        ValueError: If a tensor is missing, left over or of another shape; if a `relative_position_index` is not that
            of its window; if the classifier takes features that [`IBotSwinForImageClassification`] does not give it;
            if `num_attention_heads` is given.
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
    config = checked_config(model_class.config_class, fields, overrides)
    return load_strictly(model_class, config, tensors, name, lambda ours: official_swin_name(ours, len(windows)))


def dropped_ibot_swin(weights: Mapping[str, Tensor]) -> list[str]:
    """What of these official tensors is left behind, and why."""
    return left_behind(weights, f"layers.*{INDEX}", "left behind, follows from the size of the windows")


def official_swin_name(ours: str, stages: int) -> str:
    """The official name of one of ours; that of the joint projection for q, k and v."""
    name = ours.removeprefix("ibot.")
    return official_name(name) if name.startswith(("head.", "classifier.")) else original_name(name, *_names(stages))


def _names(stages: int) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """What `rename_tensors` has to know."""
    parts = [
        f"layers.{stage}.{part}" for stage in range(stages) for part in ("downsample.norm", "downsample.reduction")
    ]
    stacks = [f"layers.{stage}.blocks" for stage in range(stages)]
    ours = [{name: f"encoder.{name}" for name in names} for names in (parts, stacks)]
    return NAMES | ours[0], ours[1], BLOCK_NAMES


def _encoder_fields(weights: Mapping[str, Tensor], name: str) -> tuple[dict, list[int]]:
    """Fields of the configuration, and the window size of every stage."""
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
        # That of the original's constructors.
        "drop_path_rate": 0.2 if depths == [2, 2, 18, 2] else 0.1,
    }
    for stage, window in enumerate(windows):
        if window < max(windows):
            fields["image_size"] = window * 2**stage * patch_size
            break
    return fields, windows


def _check_index(key: str, index: Tensor, windows: list[int], name: str):
    window = windows[int(key.split(".")[1])]
    # BEiT's has the CLS token in front.
    if not torch.equal(index.cpu(), relative_position_index((window, window))[1:, 1:]):
        raise ValueError(f"{name}: {key} is not the index of a window of {window} x {window} patches")
