"""
Convert official BEiT v2 checkpoints (`beit2` of microsoft/unilm). Checkpoints of dBOT's symmetric variant (branch
`beit` of liuxingbin/dbot) have the same names.

Shapes: D channels, C channels of the images, P pixels along a patch, H x W patches, N = H·W, h attention heads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ...modeling.configuration_beitv2 import Beitv2Config
from ...modeling.modeling_beitv2 import Beitv2ForImageClassification, Beitv2Model
from ...modeling.modeling_beitv2_pretraining import Beitv2ForPreTraining
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
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "rel_pos_bias.relative_position_bias_table": "shared_position_bias.relative_position_bias_table",
    "norm": "layernorm",
    "fc_norm": "pooler.layernorm",
}
HEADS = {
    "lm_head": "lm_head",
    "cls_pt_norm": "head_layernorm",
    "cls_pt_lm_head": "head_lm_head",
    "head": "classifier",
}
BLOCK = {
    "attn.q_bias": "attention.q_proj.bias",
    "attn.v_bias": "attention.v_proj.bias",
    "attn.relative_position_bias_table": "relative_position_bias.relative_position_bias_table",
}
STACKS = {"blocks": "layers", "cls_pt_layers": "head_layers"}
TABLE, INDEX = "relative_position_bias_table", "relative_position_index"
CODES = 8192
# For published models with a head branch of two blocks: number of blocks -> block whose patches the branch takes.
EARLY_LAYERS = {12: 9, 24: 21}


def matches(weights: Mapping[str, torch.Tensor]) -> bool:
    """
    Check whether tensors with official names are those of BEiT v2. Only its Vision Transformers, and those of dBOT's
    symmetric variant, have a joint projection of query, key and value without a bias.

    A pre-training model is BEiT v2's if it has a head branch or predicts the 8,192 codes of the published tokenizers.
    Fine-tuned models and encoders of dBOT's symmetric variant match as well: they are the same networks.
    """
    if not has_beit_attention(weights):
        return False
    if "lm_head.weight" not in weights:
        return True
    return weights["lm_head.weight"].shape[:1] == (CODES,) or has_head_branch(weights)


def shares_names(weights: Mapping[str, torch.Tensor]) -> bool:
    """Check whether a model of dBOT's symmetric variant could have the names of these tensors."""
    return has_beit_attention(weights)


def describe_ambiguity(weights: Mapping[str, torch.Tensor]) -> str | None:
    """Say why the tensors do not show whether they are BEiT v2's or dBOT's; None if they are not ambiguous."""
    if not (has_beit_attention(weights) and "lm_head.weight" in weights):
        return None
    shape = list(weights["lm_head.weight"].shape)
    return f"has an lm_head of {shape}: give the family, beitv2 if it predicts codes, dbot if it predicts features"


def has_beit_attention(weights: Mapping[str, torch.Tensor]) -> bool:
    """Check whether the joint projection of query, key and value has no bias."""
    return "blocks.0.attn.qkv.weight" in weights and "blocks.0.attn.qkv.bias" not in weights


def has_head_branch(weights: Mapping[str, torch.Tensor]) -> bool:
    """Check whether there is a head branch for BEiT v2's patch aggregation."""
    return any(key.startswith("cls_pt_layers.") for key in weights)


def options(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the configuration that are known from the options of the original run."""
    return {"early_layers": args["early_layers"]} if args.get("early_layers") is not None else {}


def dropped(networks: Mapping[str, Mapping[str, torch.Tensor]], config: PreTrainedConfig) -> list[str]:
    """Describe what is left behind, one line for each kind of tensor."""
    return left_behind(networks["model"], f"*.{INDEX}", "left behind, it follows from the size of the images")


def rename_beitv2(official: Mapping[str, torch.Tensor], encoder_prefix: str = "beitv2.") -> dict[str, torch.Tensor]:
    """
    Rename official tensors: query, key and value are split, tensors of the encoder get a prefix, and indices into the
    tables of relative positions are left out. Unknown tensors keep their names.
    """
    official = {key: tensor for key, tensor in official.items() if not key.endswith(INDEX)}
    renamed = rename_tensors(official, ENCODER | HEADS, STACKS, BLOCK)
    unchanged = tuple(f"{head}." for head in ("head_layers", *HEADS.values()))
    return {
        key if key.startswith(unchanged) or key in official else encoder_prefix + key: tensor
        for key, tensor in renamed.items()
    }


def original_beitv2_name(ours: str) -> str:
    """Return the official name of the tensor that [`rename_beitv2`] calls `ours`."""
    return original_name(ours.removeprefix("beitv2."), ENCODER | HEADS, STACKS, BLOCK)


def convert(
    weights: Mapping[str, torch.Tensor], name: str, num_attention_heads: int | None, overrides: Mapping[str, Any]
) -> PreTrainedModel:
    """
    Build the model of a pre-training, intermediate or fine-tuned checkpoint.

    Args:
        weights (`Mapping[str, torch.Tensor]`): Tensors with official names.
        name (`str`): File name, for messages.
        num_attention_heads (`int`, *optional*): Heads per block. Required if neither a table of relative positions
            nor the width determines it.
        overrides (`Mapping`): Fields of [`Beitv2Config`] that the tensors do not determine: `early_layers` if the
            number of blocks is not a published one, `image_size` if the tables fit several windows.

    Returns:
        [`Beitv2ForPreTraining`] if there is an `lm_head`, [`Beitv2ForImageClassification`] if there is a `head`,
        else [`Beitv2Model`].

    Raises:
        ValueError: If a tensor is missing, unknown or has the wrong shape, or if a size is not known.
    """
    sizes = beitv2_sizes(weights, name, num_attention_heads, overrides)
    config = checked_config(Beitv2Config, sizes, overrides)
    index = relative_position_index(config.grid_size)
    for key, tensor in weights.items():
        if key.endswith(INDEX) and not torch.equal(tensor.cpu(), index):
            height, width = config.grid_size
            raise ValueError(f"{name}: {key} is not the index of a window of {height} x {width} patches")
    if "lm_head.weight" in weights:
        return load_strictly(Beitv2ForPreTraining, config, rename_beitv2(weights), name, original_beitv2_name)
    if "head.weight" in weights:
        return load_strictly(Beitv2ForImageClassification, config, rename_beitv2(weights), name, original_beitv2_name)
    renamed = rename_beitv2(weights, encoder_prefix="")
    masked = "mask_token" in weights
    return load_strictly(Beitv2Model, config, renamed, name, original_beitv2_name, use_mask_token=masked)


def beitv2_sizes(
    weights: Mapping[str, torch.Tensor], name: str, num_attention_heads: int | None, overrides: Mapping
) -> dict:
    """
    Read the fields of [`Beitv2Config`] from the shapes of the tensors.

    Raises:
        ValueError: As [`convert`].
    """
    width, channels, patch_size = needed(weights, "patch_embed.proj.weight", 4, name).shape[:3]
    table = next((key for key in weights if key.endswith(TABLE)), None)
    if table is not None:
        heads = needed(weights, table, 2, name).shape[1]
        if num_attention_heads not in (None, heads):
            raise ValueError(f"{name}: {table} is for {heads} attention heads, not for {num_attention_heads}")
    else:
        heads = published_heads(width, num_attention_heads)
    blocks, head_blocks = count_blocks(weights, "blocks", name), count_blocks(weights, "cls_pt_layers", name)
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "intermediate_size": needed(weights, "blocks.0.mlp.fc1.weight", 2, name).shape[0],
        "patch_size": patch_size,
        "num_channels": channels,
        "image_size": image_size_of(weights, name, patch_size, overrides.get("image_size")),
        "qkv_bias": "blocks.0.attn.q_bias" in weights,
        "use_absolute_position_embeddings": "pos_embed" in weights,
        "use_shared_relative_position_bias": f"rel_pos_bias.{TABLE}" in weights,
        "use_relative_position_bias": f"blocks.0.attn.{TABLE}" in weights,
        # The initial value of the published models.
        "layer_scale_init_value": (1e-5 if width == 1024 else 0.1) if "blocks.0.gamma_1" in weights else 0.0,
        "use_mean_pooling": "fc_norm.weight" in weights,
    }
    if "head.weight" in weights:
        sizes["num_labels"] = needed(weights, "head.weight", 2, name).shape[0]
    if "lm_head.weight" in weights:
        predicted = needed(weights, "lm_head.weight", 2, name).shape[0]
        sizes |= {
            "target_dim" if overrides.get("regression_loss") else "vocab_size": predicted,
            "head_layers": head_blocks,
            "shared_lm_head": "cls_pt_lm_head.weight" not in weights,
        }
    if head_blocks == 2 and blocks in EARLY_LAYERS:
        sizes["early_layers"] = EARLY_LAYERS[blocks]
    elif head_blocks and "early_layers" not in overrides:
        raise ValueError(
            f"{name} has {blocks} blocks and a head branch of {head_blocks}: give early_layers, the number of blocks "
            "after which the patches go to that branch"
        )
    return sizes


def image_size_of(
    weights: Mapping[str, torch.Tensor], name: str, patch_size: int, wanted: int | list[int] | None
) -> int | list[int]:
    """
    Return the image size in pixels for which the position tables were made; one number for a square.

    Args:
        weights (`Mapping[str, torch.Tensor]`): Tensors with official names.
        name (`str`): File name, for messages.
        patch_size (`int`): Side of a patch in pixels.
        wanted (`int` or `(height, width)`, *optional*): The user's choice, returned as it is.

    Raises:
        ValueError: If the tables fit no or several sizes, or contradict each other.
    """
    if wanted is not None:
        return wanted
    windows = possible_windows(weights, name)
    if len(windows) != 1:
        known = " or ".join(f"[{height * patch_size}, {width * patch_size}]" for height, width in windows)
        raise ValueError(
            f"{name}: its tensors do not tell the size of the images: give image_size={known or '[height, width]'}"
        )
    height, width = windows[0]
    return height * patch_size if height == width else [height * patch_size, width * patch_size]


def possible_windows(weights: Mapping[str, torch.Tensor], name: str) -> list[tuple[int, int]]:
    """
    Return the numbers of rows and columns of patches that fit the position tables.

    An absolute table or an index determines N; a relative table has (2H-1)·(2W-1) + 3 rows. A relative table alone is
    assumed to belong to a square if its length allows it, as in the official loaders.

    Raises:
        ValueError: If tables and index contradict each other.
    """
    table, index = (next((key for key in weights if key.endswith(kind)), None) for kind in (TABLE, INDEX))
    offsets = None if table is None else needed(weights, table, 2, name).shape[0] - 3
    if index is not None:
        patches = needed(weights, index, 2, name).shape[0] - 1
    elif "pos_embed" in weights:
        patches = needed(weights, "pos_embed", 3, name).shape[1] - 1
    elif offsets is not None:
        side = square_side(offsets)
        return [((side + 1) // 2, (side + 1) // 2)] if side is not None and side % 2 == 1 else []
    else:
        return []
    if offsets is None:
        side = square_side(patches)
        return [(side, side)] if side is not None else []
    # (2H-1)(2W-1) = 4N - 2(H+W) + 1
    both, odd = divmod(4 * patches + 1 - offsets, 2)
    windows = [(rows, both - rows) for rows in range(1, both) if rows * (both - rows) == patches]
    if odd or not windows:
        raise ValueError(
            f"{name}: {table} has {offsets + 3} rows, which do not belong to the {patches} patches of "
            f"{index or 'pos_embed'}"
        )
    if index is not None:
        windows = [window for window in windows if torch.equal(weights[index].cpu(), relative_position_index(window))]
        if not windows:
            raise ValueError(f"{name}: {index} is not the index of any window of {patches} patches")
    return windows


def relative_position_index(window: tuple[int, int]) -> torch.Tensor:
    """
    Return the row of the table of relative positions for each query and key, `int64 [1+N, 1+N]`, CLS token first. In
    the original's `modeling_finetune.py` it is a buffer.
    """
    height, width = window
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    length = (2 * height - 1) * (2 * width - 1) + 3
    index = torch.empty(1 + height * width, 1 + height * width, dtype=torch.int64)
    index[1:, 1:] = (rows[:, None] - rows + height - 1) * (2 * width - 1) + columns[:, None] - columns + width - 1
    index[0], index[:, 0], index[0, 0] = length - 3, length - 2, length - 1
    return index
