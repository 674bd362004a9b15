"""
Convert official dBOT checkpoints (liuxingbin/dbot): of the asymmetric encoder and decoder (branch `main`), and of the
symmetric variant (branch `beit`), which is a BEiT v2 model that predicts features.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ...modeling.configuration_dbot import DBotConfig
from ...modeling.modeling_dbot import DBotForImageClassification, DBotModel, sincos_positions
from ...modeling.modeling_dbot_pretraining import DBotForPreTraining
from . import beitv2
from .beitv2 import has_beit_attention, has_head_branch, image_size_of
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
# Feature widths of CLIP B/16 and L/14, which the released models of the symmetric variant predict.
CLIP_WIDTHS = ((512,), (768,))
# Thresholds for the similarity to the fixed table. Fine-tuned tables are close to it (0.99), fine-tuned tables resized
# for larger images keep 0.7, and learned tables are unrelated (0.0 ± 0.1). In between, the user has to decide.
UNLIKE, ALIKE = 0.4, 0.6


def matches(weights: Mapping[str, Tensor]) -> bool:
    """
    Check whether tensors with official names are those of dBOT.

    Models with a decoder have names of their own. Encoders, teachers and classifiers have the names of iBOT's, but
    their position table is, or started from, sines and cosines; iBOT's is learned from a random initialization. (MAE
    has the same table: its encoders are the same networks.) Symmetric pre-training models have the names of BEiT v2
    and predict features of CLIP's width.
    """
    if "decoder_embed.weight" in weights:
        return True
    if has_beit_attention(weights):
        head = weights.get("lm_head.weight")
        return head is not None and head.shape[:1] in CLIP_WIDTHS and not has_head_branch(weights)
    # A teacher without blocks has only these tensors.
    if "patch_embed.proj.weight" not in weights or "pos_embed" not in weights or "masked_embed" in weights:
        return False
    return likeness_to_sincos(weights["pos_embed"]) > ALIKE


def may_match(weights: Mapping[str, Tensor]) -> bool:
    """
    Check whether a model with iBOT's names has positions that do not show if they started from dBOT's. This includes
    every grid that is not square, because the numbers of its rows and columns are not known.
    """
    if "pos_embed" not in weights or "masked_embed" in weights:
        return False
    table = weights["pos_embed"]
    if table.ndim == 3 and square_side(table.shape[1] - 1) is None:
        return True
    return UNLIKE <= likeness_to_sincos(table) <= ALIKE


def shares_names(weights: Mapping[str, Tensor]) -> bool:
    """Return True: models of dBOT have the names of iBOT's, and of the symmetric variant those of BEiT v2's."""
    return True


def likeness_to_sincos(table: Tensor) -> float:
    """Return the cosine similarity of a position table `[1, 1+N, D]` to the fixed one, without the CLS token."""
    side = square_side(table.shape[1] - 1) if table.ndim == 3 else None
    if not side or table.shape[2] % 4:
        return 0.0
    fixed = sincos_positions(table.shape[2], (side, side))
    return torch.cosine_similarity(table[0, 1:].float().cpu().flatten(), fixed[0, 1:].flatten(), dim=0).item()


def is_sincos(table: Tensor, grid: tuple[int, int]) -> bool:
    """Check whether a position table `[1, 1+N, D]` is the fixed one of a grid, up to rounding in its precision."""
    if table.ndim != 3:
        return False
    fixed = sincos_positions(table.shape[2], grid)
    rounding = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(table.dtype, 1e-5)
    return table.shape == fixed.shape and torch.allclose(table.float().cpu(), fixed, rtol=0, atol=rounding)


def options(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the configuration that are known from the options of the original run."""
    names = {"norm_feature_loss": "norm_targets", "sdpr": "drop_path_rate"}
    return {ours: args[theirs] for theirs, ours in names.items() if theirs in args}


def dropped(networks: Mapping[str, Mapping[str, Tensor]], config: PreTrainedConfig) -> list[str]:
    """Describe what is left behind, one line for each kind of tensor."""
    weights = networks["model"]
    if has_beit_attention(weights):
        return beitv2.dropped(networks, config)
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
    Rename official tensors: query, key and value are split, tensors of the encoder get a prefix, and fixed position
    tables are left out because they are computed. Unknown tensors keep their names.
    """
    fixed = ("decoder_pos_embed",) if trainable_positions else ("decoder_pos_embed", "pos_embed")
    official = {key: tensor for key, tensor in official.items() if key not in fixed}
    renamed = rename_tensors(official, ENCODER | HEADS, STACKS, {})
    return {
        key if key.startswith(("decoder.", "classifier.")) or key in official else encoder_prefix + key: tensor
        for key, tensor in renamed.items()
    }


def original_dbot_name(ours: str) -> str:
    """Return the official name of the tensor that [`rename_dbot`] calls `ours`."""
    return original_name(ours.removeprefix("dbot."), ENCODER | HEADS, STACKS, {})


def convert(
    weights: Mapping[str, Tensor], name: str, num_attention_heads: int | None, overrides: Mapping[str, Any]
) -> PreTrainedModel:
    """
    Build the model of a pre-training, teacher or fine-tuned checkpoint.

    A fixed position table is left out and computed; any other table becomes a parameter
    (`trainable_position_embeddings`), as in all fine-tuned models. With a classifier on the mean patch, the final norm
    is not used and is left behind.

    Args:
        weights (`Mapping[str, Tensor]`): Tensors with official names.
        name (`str`): File name, for messages.
        num_attention_heads (`int`, *optional*): Heads per block. Required if no published model has this width.
        overrides (`Mapping`): Fields of [`DBotConfig`] (of [`Beitv2Config`] for the symmetric variant) that the
            tensors do not determine, such as `decoder_num_attention_heads`, or `regression_loss`, which is
            `"negcosine"` by default.

    Returns:
        [`DBotForPreTraining`] if there is a decoder, [`DBotForImageClassification`] if there is a `head`, else
        [`DBotModel`]. For the symmetric variant, a model of BEiT v2.

    Raises:
        ValueError: If a tensor is missing, unknown or has the wrong shape, if a size is not known, or if the decoder
            is MAE's, which predicts pixels.
    """
    if has_beit_attention(weights):
        if has_head_branch(weights):
            raise ValueError(f"{name}: a head branch (cls_pt_layers) is BEiT v2's, dBOT has none")
        if "lm_head.weight" in weights:
            overrides = {"regression_loss": "negcosine"} | dict(overrides)
        return beitv2.convert(weights, name, num_attention_heads, overrides)
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
        model_class: type[PreTrainedModel] = DBotForPreTraining
    elif "head.weight" in weights:
        model_class = DBotForImageClassification
    else:
        model_class = DBotModel
    prefix = "" if model_class is DBotModel else "dbot."
    renamed = rename_dbot(weights, prefix, config.trainable_position_embeddings)
    return load_strictly(model_class, config, renamed, name, original_dbot_name)


def dbot_sizes(weights: Mapping[str, Tensor], name: str, num_attention_heads: int | None, overrides: Mapping) -> dict:
    """
    Read the fields of [`DBotConfig`] from the shapes of the tensors and the values of the position table.

    Raises:
        ValueError: As [`convert`].
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
    # With all sizes of the file: a default may contradict an override.
    grid = checked_config(DBotConfig, sizes, overrides).grid_size
    sizes["trainable_position_embeddings"] = "head.weight" in weights or not is_sincos(table, grid)
    return sizes
