"""
Official dBOT checkpoints (liuxingbin/dbot) as models of this package: of the asymmetric encoder and decoder (branch
`main`), and of the symmetric variant (branch `beit`), which is a BEiT v2 model that predicts features.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ...modeling.configuration_dbot import DBotConfig
from ...modeling.modeling_dbot import DBotForImageClassification, DBotModel, sincos_positions
from ...modeling.modeling_dbot_pretraining import DBotForPreTraining
from .beitv2 import convert_beitv2, dropped_beitv2, has_beit_attention, has_head_branch, image_size_of
from .renaming import (
    checked_config,
    count_blocks,
    left_behind,
    load_strictly,
    needed,
    original_name,
    published_heads,
    rename_tensors,
    square_side,
)


ENCODER = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "fc_norm": "pooler.layernorm",
}
HEADS = {
    "mask_token": "decoder.mask_token",
    "decoder_embed": "decoder.embed",
    "decoder_norm": "decoder.layernorm",
    "decoder_predp": "decoder.prediction",
    "head": "classifier",
}
STACKS = {"blocks": "layers", "decoder_blocks": "decoder.layers"}
# Widths of the features of CLIP's B/16 and L/14, which the released models of the symmetric variant predict.
CLIP_WIDTHS = ((512,), (768,))
# Likeness to the fixed table. A fine-tuned one has hardly moved from it (0.99), and resized for larger images it keeps
# 0.7; a learned one has nothing to do with it (0.0 ± 0.1). What lies between is not decided here.
UNLIKE, ALIKE = 0.4, 0.6


def is_dbot(weights: Mapping[str, Tensor]) -> bool:
    """
    Whether tensors with official names are those of dBOT.

    Names alone tell this of a model with a decoder. Encoders, teachers and classifiers have the names of iBOT's; here
    their positions are, or started from, a table of sines and cosines, and there they are learned from nothing. (MAE
    has the same table: its encoders are the same networks.)
    A symmetric model in pre-training has the names of BEiT v2, and predicts features of CLIP's width.
    """
    if "decoder_embed.weight" in weights:
        return True
    if has_beit_attention(weights):
        head = weights.get("lm_head.weight")
        return head is not None and head.shape[:1] in CLIP_WIDTHS and not has_head_branch(weights)
    # A teacher without blocks has these alone.
    if "patch_embed.proj.weight" not in weights or "pos_embed" not in weights or "masked_embed" in weights:
        return False
    return likeness_to_sincos(weights["pos_embed"]) > ALIKE


def may_be_dbot(weights: Mapping[str, Tensor]) -> bool:
    """
    Whether a model with iBOT's names has positions of which it is not clear whether they started from dBOT's: those of
    a grid that is no square tell nothing, because rows and columns are not known.
    """
    if "pos_embed" not in weights or "masked_embed" in weights:
        return False
    table = weights["pos_embed"]
    if table.ndim == 3 and square_side(table.shape[1] - 1) is None:
        return True
    return UNLIKE <= likeness_to_sincos(table) <= ALIKE


def likeness_to_sincos(table: Tensor) -> float:
    """Cosine of a table of positions `[1, 1+N, D]`, without the CLS token's, and the fixed one of a square of N."""
    side = square_side(table.shape[1] - 1) if table.ndim == 3 else None
    if not side or table.shape[2] % 4:
        return 0.0
    fixed = sincos_positions(table.shape[2], (side, side))
    return torch.cosine_similarity(table[0, 1:].float().cpu().flatten(), fixed[0, 1:].flatten(), dim=0).item()


def is_sincos(table: Tensor, grid: tuple[int, int]) -> bool:
    """Whether a table of positions `[1, 1+N, D]` is the fixed one of a grid, up to the rounding of its precision."""
    if table.ndim != 3:
        return False
    fixed = sincos_positions(table.shape[2], grid)
    rounding = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(table.dtype, 1e-5)
    return table.shape == fixed.shape and torch.allclose(table.float().cpu(), fixed, rtol=0, atol=rounding)


def dbot_options(args: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of the run that wrote a checkpoint tell of its configuration, and the shapes do not."""
    names = {"norm_feature_loss": "norm_targets", "sdpr": "drop_path_rate"}
    return {ours: args[theirs] for theirs, ours in names.items() if theirs in args}


def dropped_dbot(weights: Mapping[str, Tensor], config: PreTrainedConfig) -> list[str]:
    """What of a checkpoint stays behind, and why."""
    if has_beit_attention(weights):
        return dropped_beitv2(weights)
    fixed = ("decoder_pos_embed",) if config.trainable_position_embeddings else ("pos_embed", "decoder_pos_embed")
    computed = "left behind, fixed sines and cosines are computed"
    lines = [line for key in fixed for line in left_behind(weights, key, computed)]
    if config.use_mean_pooling:
        lines += left_behind(weights, "norm.*", "left behind, mean pooling has a norm of its own")
    return lines


def rename_dbot(
    official: Mapping[str, Tensor], encoder_prefix: str = "dbot.", trainable_positions: bool = False
) -> dict[str, Tensor]:
    """
    Official tensors under our names: query, key and value in three, those of the encoder with a prefix, and without
    the fixed tables of positions, which are computed. Unknown ones keep their names.
    """
    fixed = ("decoder_pos_embed",) if trainable_positions else ("decoder_pos_embed", "pos_embed")
    official = {key: tensor for key, tensor in official.items() if key not in fixed}
    renamed = rename_tensors(official, ENCODER | HEADS, STACKS, {})
    return {
        key if key.startswith(("decoder.", "classifier.")) or key in official else encoder_prefix + key: tensor
        for key, tensor in renamed.items()
    }


def original_dbot_name(ours: str) -> str:
    """The official name of what [`rename_dbot`] calls `ours`."""
    return original_name(ours.removeprefix("dbot."), ENCODER | HEADS, STACKS, {})


def convert_dbot(
    weights: Mapping[str, Tensor], name: str, num_attention_heads: int | None, overrides: Mapping[str, Any]
) -> PreTrainedModel:
    """
    The model of a pre-training, teacher's or fine-tuned checkpoint.

    A table of positions that is the fixed one is computed from then on; any other one becomes a parameter
    (`trainable_position_embeddings`), as that of every fine-tuned model. The final norm beside a classifier on the
    mean patch is not used, and stays behind.

    Args:
        weights (`Mapping[str, Tensor]`): Tensors with official names.
        name (`str`): Where they come from, for messages.
        num_attention_heads (`int`, *optional*): Heads per block, where the width is not a published one.
        overrides (`Mapping`): Fields of [`DBotConfig`] (of [`Beitv2Config`] for the symmetric variant) that no tensor
            tells, such as `decoder_num_attention_heads`, or `regression_loss`, which is `"negcosine"` if not given.

    Returns:
        [`DBotForPreTraining`] if there is a decoder, [`DBotForImageClassification`] if there is a `head`, else
        [`DBotModel`]; of the symmetric variant a model of BEiT v2.

    Raises:
        ValueError: If a tensor is missing, unknown or of another shape than the others ask for, if a size is not
            known, or if the decoder is that of MAE, which predicts pixels.
    """
    if has_beit_attention(weights):
        if has_head_branch(weights):
            raise ValueError(f"{name}: a head branch (cls_pt_layers) is BEiT v2's, dBOT has none")
        if "lm_head.weight" in weights:
            overrides = {"regression_loss": "negcosine"} | dict(overrides)
        return convert_beitv2(weights, name, num_attention_heads, overrides)
    if "decoder_pred.weight" in weights:
        raise ValueError(
            f"{name}: its decoder predicts pixels (decoder_pred), as MAE's does, and dBOT's predicts features "
            "(decoder_predp); without mask_token and decoder_* it converts as an encoder"
        )
    config = checked_config(DBotConfig, dbot_sizes(weights, name, num_attention_heads, overrides), overrides)
    if "decoder_pos_embed" in weights and not is_sincos(weights["decoder_pos_embed"], config.grid_size):
        raise ValueError(f"{name}: decoder_pos_embed is not the fixed table of sines and cosines of this grid")
    if config.use_mean_pooling:
        weights = {key: tensor for key, tensor in weights.items() if key not in ("norm.weight", "norm.bias")}
    if "decoder_embed.weight" in weights:
        model_class, prefix = DBotForPreTraining, "dbot."
    elif "head.weight" in weights:
        model_class, prefix = DBotForImageClassification, "dbot."
    else:
        model_class, prefix = DBotModel, ""
    renamed = rename_dbot(weights, prefix, config.trainable_position_embeddings)
    return load_strictly(model_class, config, renamed, name, original_dbot_name)


def dbot_sizes(weights: Mapping[str, Tensor], name: str, num_attention_heads: int | None, overrides: Mapping) -> dict:
    """
    Fields of [`DBotConfig`] by the shapes of the tensors, and by the values of the position table.

    Raises:
        ValueError: As [`convert_dbot`].
    """
    width, channels, patch_size = needed(weights, "patch_embed.proj.weight", 4, name).shape[:3]
    table, blocks = needed(weights, "pos_embed", 3, name), count_blocks(weights, "blocks", name)
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": published_heads(width, num_attention_heads),
        "patch_size": patch_size,
        "num_channels": channels,
        "image_size": image_size_of(weights, name, patch_size, overrides.get("image_size")),
        "use_mean_pooling": "fc_norm.weight" in weights,
    }
    if blocks:
        sizes["intermediate_size"] = needed(weights, "blocks.0.mlp.fc1.weight", 2, name).shape[0]
    grid = checked_config(DBotConfig, sizes, overrides).grid_size
    sizes["trainable_position_embeddings"] = "head.weight" in weights or not is_sincos(table, grid)
    if "head.weight" in weights:
        sizes["num_labels"] = needed(weights, "head.weight", 2, name).shape[0]
    if "decoder_embed.weight" in weights:
        decoder_width = needed(weights, "decoder_embed.weight", 2, name).shape[0]
        sizes |= {
            "decoder_hidden_size": decoder_width,
            "decoder_num_hidden_layers": count_blocks(weights, "decoder_blocks", name),
            "decoder_intermediate_size": needed(weights, "decoder_blocks.0.mlp.fc1.weight", 2, name).shape[0],
            "target_dim": needed(weights, "decoder_predp.weight", 2, name).shape[0],
        }
        if decoder_width != 512 and "decoder_num_attention_heads" not in overrides:
            raise ValueError(
                f"{name}: its decoder is {decoder_width} wide, and the published ones 512: give "
                "decoder_num_attention_heads, which the weights do not tell"
            )
    return sizes
