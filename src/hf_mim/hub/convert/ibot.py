"""Official iBOT weights with a Vision Transformer (SPEC section 7 of the original code) as models of this package."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...modeling.modeling_ibot import IBotForImageClassification, IBotModel
from ...modeling.modeling_ibot_pretraining import IBotForPreTraining
from .renaming import (
    checked_config,
    count_blocks,
    load_strictly,
    needed,
    original_name,
    published_heads,
    rename_tensors,
    square_side,
)


# What no encoder is without, and its number of dimensions.
IBOT_CORE = {
    "cls_token": 3,
    "pos_embed": 3,
    "patch_embed.proj.weight": 4,
    "blocks.0.attn.qkv.weight": 2,
    "blocks.0.mlp.fc1.weight": 2,
}
NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "masked_embed": "embeddings.mask_token",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "fc_norm": "fc_norm",
}
STACKS = {"blocks": "layers"}
ENCODER_NAME = re.compile(
    r"cls_token|pos_embed|masked_embed|(patch_embed\.proj|norm|fc_norm)\.(weight|bias)|"
    r"blocks\.\d+\.((norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(weight|bias)|gamma_[12])"
)
HEAD_RENAMES = {
    "last_layer.weight_v": "last_layer.direction",
    "last_layer.weight_g": "last_layer.magnitude",
    "last_layer2.weight_v": "patch_last_layer.direction",
    "last_layer2.weight_g": "patch_last_layer.magnitude",
    "mlp2.weight": "patch_projection.weight",
    "mlp2.bias": "patch_projection.bias",
}
MLP_NAME = re.compile(r"mlp\.(\d+)\.(\w+)")
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
    if not set(IBOT_CORE) <= set(keys):
        return False
    if "masked_embed" in keys or "head.last_layer2.weight_v" in keys:
        return True
    # A last layer for the CLS token alone is DINO's.
    return "head.last_layer.weight_v" not in keys and not unknown_to_ibot(keys)


def unknown_to_ibot(keys: Collection[str]) -> list[str]:
    """The names among these that neither an encoder of iBOT nor one of its heads has."""
    heads = ("head.mlp.", "head.mlp2.", "head.last_layer.", "head.last_layer2.")
    classifiers = ("head.weight", "head.bias", "linear.weight", "linear.bias")
    return [
        key for key in keys if not ENCODER_NAME.fullmatch(key) and not key.startswith(heads) and key not in classifiers
    ]


def ibot_options(args: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of the run that wrote a checkpoint say about the configuration."""
    return {name: args[option] for option, name in OPTIONS.items() if option in args}


def convert_ibot(
    weights: Mapping[str, Tensor], name: str, num_attention_heads: int | None, overrides: Mapping[str, Any]
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
        overrides (`Mapping`): Fields of [`IBotConfig`].

    Raises:
        ValueError: If a tensor is missing, left over or of another shape; if the classifier takes features that
            [`IBotForImageClassification`] does not give it.
    """
    model_class, fields, tensors = translate_ibot(weights, name, num_attention_heads, overrides)
    config = checked_config(model_class.config_class, fields, overrides)
    return load_strictly(model_class, config, tensors, name, official_name)


def translate_ibot(
    weights: Mapping[str, Tensor], name: str, num_attention_heads: int | None, overrides: Mapping[str, Any]
) -> tuple[type[PreTrainedModel], dict[str, Any], dict[str, Tensor]]:
    """
    Class and fields of the configuration for these weights, and the weights under our names and in their own type,
    those of q, k and v as views of the joint ones. What has no name here keeps its own.
    """
    parts = split_parts(weights)
    fields = _encoder_fields(parts["encoder"], name, num_attention_heads, overrides)
    encoder = rename_tensors(parts["encoder"], NAMES, STACKS, {})
    mask_token = encoder.get("embeddings.mask_token", torch.zeros(1, fields["hidden_size"]))
    encoder["embeddings.mask_token"] = mask_token.unsqueeze(0)
    classes = (IBotModel, IBotForPreTraining, IBotForImageClassification)
    return assemble(classes, fields, fields["hidden_size"], encoder, parts, name, overrides)


def split_parts(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The official tensors of encoder, projection head or classifier (`head`), and `linear` classifier."""
    parts = {"encoder": {}, "head": {}, "linear": {}}
    for key, tensor in weights.items():
        part = next((part for part in ("head", "linear") if key.startswith(f"{part}.")), "encoder")
        parts[part][key] = tensor
    return parts


def assemble(
    classes: tuple[type[PreTrainedModel], type[PreTrainedModel], type[PreTrainedModel]],
    fields: dict[str, Any],
    width: int,
    encoder: dict[str, Tensor],
    parts: dict[str, dict[str, Tensor]],
    name: str,
    overrides: Mapping[str, Any],
) -> tuple[type[PreTrainedModel], dict[str, Any], dict[str, Tensor]]:
    """
    Class, fields and tensors of the most complete model of an encoder, of `width` channels and already under our
    names, and what `parts` hold beside it. The classes are those of encoder, pre-training model and classifier.
    """
    encoder_class, pretraining_class, classifier_class = classes
    if not (parts["head"] or parts["linear"]):
        return encoder_class, fields, encoder
    if any(key.startswith("head.mlp.") for key in parts["head"]):
        model_class = pretraining_class
        head_fields, head = _projection_head(parts["head"], name, overrides)
    else:
        model_class = classifier_class
        prefix = "head." if parts["head"] else "linear."
        head = {key.replace(prefix, "classifier.", 1): tensor for key, tensor in parts[prefix[:-1]].items()}
        head_fields = _classifier_fields(head, width, name)
    if parts["head"]:
        head |= parts["linear"]  # one classifier too many, if any, which loading reports
    encoder = {f"{model_class.base_model_prefix}.{key}": tensor for key, tensor in encoder.items()}
    return model_class, fields | head_fields, encoder | head


def official_name(ours: str) -> str:
    """The official name of one of ours; that of the joint projection for q, k and v."""
    name = ours.removeprefix("ibot.")
    if name.startswith("classifier."):
        return name.replace("classifier.", "head.")
    if name.startswith("head."):
        return next((f"head.{theirs}" for theirs, part in HEAD_RENAMES.items() if name == f"head.{part}"), name)
    return original_name(name, NAMES, STACKS, {})


def _encoder_fields(weights: Mapping[str, Tensor], name: str, heads: int | None, overrides: Mapping) -> dict:
    for key, ndim in IBOT_CORE.items():
        needed(weights, key, ndim, name)
    width, channels, patch_size = weights["patch_embed.proj.weight"].shape[:3]
    side = square_side(weights["pos_embed"].shape[1] - 1)
    if side is None and "image_size" not in overrides:
        raise ValueError(
            f"{name}: the position table is for {weights['pos_embed'].shape[1] - 1} patches, which are no square: "
            f"give image_size=[height, width]"
        )
    fields = {
        "hidden_size": width,
        "num_hidden_layers": count_blocks(weights, "blocks", name),
        "num_attention_heads": published_heads(width, heads),
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


def _projection_head(weights: Mapping[str, Tensor], name: str, overrides: Mapping) -> tuple[dict, dict[str, Tensor]]:
    """
    Fields and tensors of `iBOTHead`: the modules of its `mlp` are numbered, activations included. Linear layers are
    those with a matrix; the others are norms, of which there is one, under several numbers.
    """
    official = {key.removeprefix("head."): tensor for key, tensor in weights.items()}
    numbers = sorted({int(found[1]) for found in map(MLP_NAME.fullmatch, official) if found})
    linears = [n for n in numbers if getattr(official.get(f"mlp.{n}.weight"), "ndim", 0) == 2]
    norms = [n for n in numbers if n not in linears]
    if not linears:
        raise ValueError(f"{name}: head.mlp has no linear layer")
    head = {}
    for key, tensor in official.items():
        found = MLP_NAME.fullmatch(key)
        if found is None:
            head[f"head.{HEAD_RENAMES.get(key, key)}"] = tensor
        elif int(found[1]) in linears:
            head[f"head.layers.{linears.index(int(found[1]))}.{found[2]}"] = tensor
        elif (known := head.setdefault(f"head.norm.{found[2]}", tensor)) is not tensor and not _equal(known, tensor):
            raise ValueError(f"{name}: head.{key} differs from head.mlp.{norms[0]}.{found[2]}, which is the same norm")

    first, last = (official[f"mlp.{n}.weight"] for n in (linears[0], linears[-1]))
    fields = {"head_num_layers": len(linears)}
    if len(linears) > 1:
        fields["head_hidden_size"] = len(first)
    if norms:
        fields["head_norm"] = "bn" if "head.norm.running_mean" in head else "ln"
    if "last_layer.weight_v" not in official:
        fields |= {"head_bottleneck_size": 0, "out_dim": len(last), "shared_head": "mlp2.weight" not in official}
        if not fields["shared_head"]:
            fields["patch_out_dim"] = len(official["mlp2.weight"])
        return fields, head

    for key in ("last_layer2.weight_g", "last_layer2.weight_v"):
        if key not in official:
            raise ValueError(f"{name}: missing head.{key}")
    fields |= {"head_bottleneck_size": len(last), "out_dim": len(official["last_layer.weight_v"])}
    if "last_layer.weight_g" in official:
        fields["norm_last_layer"] = bool((official["last_layer.weight_g"].float() - 1).abs().max() < 1e-4)
    # A shared last layer is kept under both names.
    pairs = [(f"head.last_layer.{kind}", f"head.patch_last_layer.{kind}") for kind in ("direction", "magnitude")]
    differing = [patch for cls, patch in pairs if not (cls in head and _equal(head[cls], head[patch]))]
    fields["shared_head"] = not differing
    if overrides.get("shared_head", fields["shared_head"]):
        if differing:
            raise ValueError(f"{name}: last_layer and last_layer2 of the head differ, so that shared_head is false")
        head = {key: tensor for key, tensor in head.items() if not key.startswith("head.patch_last_layer.")}
    else:
        fields["patch_out_dim"] = len(official["last_layer2.weight_v"])
    return fields, head


def _equal(first: Tensor, second: Tensor) -> bool:
    """Also without reading them, where a file holds one tensor under two names."""
    if first.shape != second.shape:
        return False
    return first is second or first.data_ptr() == second.data_ptr() or torch.equal(first, second)


def _classifier_fields(head: Mapping[str, Tensor], width: int, name: str) -> dict[str, int]:
    weight = head.get("classifier.weight")
    if weight is None or weight.ndim != 2:
        return {}
    if weight.shape[1] != width:
        raise ValueError(
            f"{name}: the linear classifier takes {weight.shape[1]} features, {weight.shape[1] / width:g} times the "
            f"width: CLS tokens of several blocks, or CLS token and mean patch (n_last_blocks and avgpool_patchtokens "
            f"of eval_linear). The classifiers here give it the {width} of the last CLS token alone: convert the "
            f"encoder's own file"
        )
    return {"num_labels": len(weight)}
