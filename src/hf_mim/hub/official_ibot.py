"""Official iBOT weights with a Vision Transformer (SPEC section 7 of the original code) as models of this package."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ..modeling.configuration_ibot import IBotConfig
from ..modeling.modeling_ibot import IBotForImageClassification, IBotModel
from ..modeling.modeling_ibot_pretraining import IBotForPreTraining
from .official_names import checked_config, load_strictly, published_heads, split_qkv, square_side


RENAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "masked_embed": "embeddings.mask_token",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "fc_norm": "fc_norm",
}
BLOCK_RENAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "gamma_1": "lambda_1",
    "gamma_2": "lambda_2",
}
# Options of `main_ibot.py` and of the fine-tuning scripts that are fields of the configuration and not to be seen in
# the weights.
OPTIONS = {
    "norm_last_layer": "norm_last_layer",
    "norm_in_head": "head_norm",
    "act_in_head": "head_act",
    "drop_path": "drop_path_rate",
    "lambda1": "cls_loss_weight",
    "lambda2": "patch_loss_weight",
}


def is_ibot(keys: Collection[str]) -> bool:
    """
    Whether these official names are iBOT's with a Vision Transformer: an encoder alone, with the two last layers of
    its projection head, or with a classifier.

    An encoder of DINO or of a plain ViT has the same names and the same function: it is one of these too.
    """
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= set(keys):
        return False
    rest = [key for key in keys if _backbone_name(key) is None]
    heads = ("head.mlp.", "head.mlp2.", "head.last_layer.", "head.last_layer2.")
    has_projection = any(key.startswith("head.mlp.") for key in rest)
    if has_projection and "head.last_layer.weight_v" in keys and "head.last_layer2.weight_v" not in keys:
        return False  # DINO
    return all(
        key.startswith(heads) or key in ("head.weight", "head.bias", "linear.weight", "linear.bias") for key in rest
    )


def ibot_options(args: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of the run that wrote a checkpoint say about the configuration."""
    return {name: args[option] for option, name in OPTIONS.items() if option in args}


def convert_ibot(
    weights: Mapping[str, Tensor], name: str, num_attention_heads: int | None = None, **overrides
) -> IBotForPreTraining | IBotForImageClassification | IBotModel:
    """
    The most complete iBOT model that these weights make, in eval mode.

    The mask token, which teachers do not have, is zero then, as it is at the start of a training. Whether the last
    layer's magnitudes are learned is told by their values, unless `norm_last_layer` is among the overrides: magnitudes
    of 1 throughout are fixed ones.

    Args:
        weights (`Mapping[str, Tensor]`): One network of an [`OfficialCheckpoint`].
        name (`str`): File name, for messages.
        num_attention_heads (`int`, *optional*): Needed if the width is not a published one.
        **overrides: Fields of [`IBotConfig`].

    Raises:
        ValueError: If a tensor is missing, left over or of another shape; if the classifier takes features that
            [`IBotForImageClassification`] does not give it.
    """
    parts = {"encoder": {}, "head": {}, "linear": {}}
    for key, tensor in weights.items():
        part = next((part for part in ("head", "linear") if key.startswith(f"{part}.")), "encoder")
        parts[part][key] = tensor
    fields = _encoder_fields(parts["encoder"], name, num_attention_heads, overrides)
    encoder = _encoder_weights(parts["encoder"], fields["hidden_size"])
    if any(key.startswith("head.mlp.") for key in parts["head"]):
        head_fields, head = _projection_head(parts["head"], name, overrides)
        model_class, fields = IBotForPreTraining, fields | head_fields
    elif parts["head"] or parts["linear"]:
        prefix = "head" if parts["head"] else "linear"
        head = {key.replace(f"{prefix}.", "classifier."): tensor for key, tensor in parts[prefix].items()}
        if "classifier.weight" in head:
            _check_features(head["classifier.weight"], fields["hidden_size"], name)
            fields["num_labels"] = len(head["classifier.weight"])
        model_class = IBotForImageClassification
    else:
        model_class, head = IBotModel, {}
    if parts["head"] and parts["linear"]:
        head |= parts["linear"]  # one too many, which loading reports
    prefix = "" if model_class is IBotModel else "ibot."
    config = checked_config(IBotConfig, fields, overrides)
    ours = {key if key in weights else f"{prefix}{key}": tensor for key, tensor in encoder.items()}
    return load_strictly(model_class, config, ours | head, name)


def _encoder_fields(weights: Mapping[str, Tensor], name: str, heads: int | None, overrides: dict) -> dict:
    for key, rank in (
        ("cls_token", 3),
        ("pos_embed", 3),
        ("patch_embed.proj.weight", 4),
        ("blocks.0.mlp.fc1.weight", 2),
    ):
        if key not in weights:
            raise ValueError(f"{name} has no {key}: it is not an iBOT encoder")
        if weights[key].ndim != rank:
            raise ValueError(f"{name}: {key} has shape {list(weights[key].shape)}, which is not iBOT's")
    width, channels, patch_size = weights["patch_embed.proj.weight"].shape[:3]
    side = square_side(weights["pos_embed"].shape[1] - 1)
    if side is None and "image_size" not in overrides:
        raise ValueError(
            f"{name}: the position table is for {weights['pos_embed'].shape[1] - 1} patches, which are no square: "
            f"give image_size=[height, width]"
        )
    blocks = {int(key.split(".")[1]) for key in weights if key.startswith("blocks.")}
    fields = {
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": published_heads(width, overrides.get("num_attention_heads", heads)),
        "intermediate_size": len(weights["blocks.0.mlp.fc1.weight"]),
        "patch_size": patch_size,
        "num_channels": channels,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "use_mean_pooling": "fc_norm.weight" in weights,
        # The value that it starts from is not kept; that it is there is all that counts for trained weights.
        "layer_scale_init_value": 0.1 if "blocks.0.gamma_1" in weights else 0.0,
    }
    if side is not None:
        fields["image_size"] = side * patch_size
    return fields


def _backbone_name(key: str) -> str | None:
    """Our name of an official tensor of the encoder, None if there is none; of `qkv` that of the attention."""
    if key.startswith("blocks."):
        parts = key.split(".", 2)
        if len(parts) < 3 or not parts[1].isdigit():
            return None
        layer, key, renames = f"layers.{parts[1]}.", parts[2], BLOCK_RENAMES
        if key in ("attn.qkv.weight", "attn.qkv.bias"):
            return f"{layer}attention"
    else:
        layer, renames = "", RENAMES
    for old, new in renames.items():
        if key == old or key in (f"{old}.weight", f"{old}.bias"):
            return layer + new + key.removeprefix(old)
    return None


def _encoder_weights(weights: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """Under our names, what has none under its official one."""
    converted = {}
    for key, tensor in weights.items():
        ours = _backbone_name(key)
        if ours is None:
            converted[key] = tensor
        elif ".attn.qkv." in key:
            converted |= split_qkv(ours, key.rsplit(".", 1)[1], tensor)
        else:
            converted[ours] = tensor.unsqueeze(0) if key == "masked_embed" else tensor
    if "masked_embed" not in weights:
        converted["embeddings.mask_token"] = torch.zeros(1, 1, width)
    return converted


def _projection_head(weights: Mapping[str, Tensor], name: str, overrides: dict) -> tuple[dict, dict[str, Tensor]]:
    """Fields and our names of `iBOTHead`: linear layers `mlp.N` of the hidden sizes, and one norm under many names."""
    official = {key.removeprefix("head."): tensor for key, tensor in weights.items()}
    numbers = sorted({int(key.split(".")[1]) for key in official if key.startswith("mlp.")})
    linears = [n for n in numbers if official.get(f"mlp.{n}.weight", official[f"mlp.{numbers[0]}.weight"]).ndim == 2]
    norms = [n for n in numbers if n not in linears]
    head = {}
    for key, tensor in official.items():
        part, _, rest = key.partition(".")
        if part == "mlp":
            number, kind = rest.split(".")
            if int(number) in linears:
                head[f"head.layers.{linears.index(int(number))}.{kind}"] = tensor
            elif int(number) == norms[0]:
                head[f"head.norm.{kind}"] = tensor
            elif not _equal(tensor, official[f"mlp.{norms[0]}.{kind}"]):
                raise ValueError(f"{name}: head.{key} differs from head.mlp.{norms[0]}.{kind}, which is the same norm")
        elif part == "mlp2":
            head[f"head.patch_projection.{rest}"] = tensor
        elif part in ("last_layer", "last_layer2") and rest in ("weight_g", "weight_v"):
            module = "last_layer" if part == "last_layer" else "patch_last_layer"
            head[f"head.{module}.{'magnitude' if rest == 'weight_g' else 'direction'}"] = tensor
        else:
            head[f"head.{key}"] = tensor  # without a name here, which loading reports

    last = official[f"mlp.{linears[-1]}.weight"]
    has_bottleneck = "last_layer.weight_v" in official
    fields = {
        "head_num_layers": len(linears),
        "head_hidden_size": len(official[f"mlp.{linears[0]}.weight"]) if len(linears) > 1 else 2048,
        "head_bottleneck_size": len(last) if has_bottleneck else 0,
        "out_dim": len(official["last_layer.weight_v"]) if has_bottleneck else len(last),
    }
    if norms:
        fields["head_norm"] = "bn" if f"mlp.{norms[0]}.running_mean" in official else "ln"
    pairs = [(f"head.last_layer.{kind}", f"head.patch_last_layer.{kind}") for kind in ("direction", "magnitude")]
    if has_bottleneck:
        fields["shared_head"] = all(b in head and _equal(head[a], head[b]) for a, b in pairs if a in head)
        fields["norm_last_layer"] = bool((official["last_layer.weight_g"].float() - 1).abs().max() < 1e-4)
        if overrides.get("shared_head", fields["shared_head"]):
            for cls_key, patch_key in pairs:
                if patch_key in head and not _equal(head[cls_key], head.pop(patch_key)):
                    raise ValueError(f"{name}: head.last_layer and head.last_layer2 differ: shared_head must be False")
        else:
            fields["patch_out_dim"] = len(official["last_layer2.weight_v"])
    else:
        fields["shared_head"] = "mlp2.weight" not in official
        if "mlp2.weight" in official:
            fields["patch_out_dim"] = len(official["mlp2.weight"])
    return fields, head


def _equal(first: Tensor, second: Tensor) -> bool:
    """Also without reading them, where a file holds one tensor under two names."""
    if first.shape != second.shape:
        return False
    return first is second or first.data_ptr() == second.data_ptr() or torch.equal(first, second)


def _check_features(classifier: Tensor, width: int, name: str):
    if classifier.ndim == 2 and classifier.shape[1] != width:
        raise ValueError(
            f"{name}: the linear classifier takes {classifier.shape[1]} features, {classifier.shape[1] / width:g} "
            f"times the width: CLS tokens of several blocks, or CLS token and mean patch (n_last_blocks and "
            f"avgpool_patchtokens of eval_linear). IBotForImageClassification gives it the {width} of the last CLS "
            f"token alone: convert the encoder's own file"
        )
