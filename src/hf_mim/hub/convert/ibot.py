"""Convert official iBOT weights of a Vision Transformer (SPEC section 7 of the original code)."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ...modeling.configuration_ibot import IBotConfig
from ...modeling.modeling_ibot import IBotForImageClassification, IBotModel
from ...modeling.modeling_ibot_pretraining import IBotForPreTraining
from . import dbot
from .beitv2 import has_beit_attention
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


# Tensors that every encoder has, and their number of dimensions.
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
# Options of `main_ibot.py` and of the fine-tuning scripts that become fields of the configuration: the weights do not
# show them.
OPTIONS = {
    "norm_last_layer": "norm_last_layer",
    "norm_in_head": "head_norm",
    "act_in_head": "head_act",
    "drop_path": "drop_path_rate",
    "lambda1": "cls_loss_weight",
    "lambda2": "patch_loss_weight",
}


def matches(weights: Mapping[str, Tensor]) -> bool:
    """
    Check whether the tensors are those of iBOT with a Vision Transformer: an encoder alone, with the two last layers
    of its projection head, or with a classifier.

    An encoder of DINO or a plain ViT has the same names and computes the same function: it matches as well. dBOT's
    encoders also have these names; the values of their position table tell them apart.
    """
    return has_ibot_names(weights) and not (
        dbot.matches(weights) or dbot.may_match(weights) or has_beit_attention(weights)
    )


def shares_names(weights: Mapping[str, Tensor]) -> bool:
    """Check whether a model of dBOT could have the names of these tensors."""
    return not has_beit_attention(weights)


def has_ibot_names(keys: Collection[str]) -> bool:
    """Check the names of tensors alone."""
    if not set(IBOT_CORE) <= set(keys):
        return False
    if "masked_embed" in keys or "head.last_layer2.weight_v" in keys:
        return True
    # DINO has a last layer for the CLS token only.
    return "head.last_layer.weight_v" not in keys and not unknown_names(keys)


def describe_ambiguity(weights: Mapping[str, Tensor]) -> str | None:
    """Say why the tensors do not show whether they are iBOT's or dBOT's; None if they are not ambiguous."""
    if not (dbot.may_match(weights) and has_ibot_names(weights)):
        return None
    if square_side(weights["pos_embed"].shape[1] - 1) is None:
        return "has positions of a grid that is not square, which could be either's: give the family, ibot or dbot"
    return "has positions that resemble dBOT's sines and cosines, but not closely: give the family, ibot or dbot"


def describe_differences(weights: Mapping[str, Tensor]) -> str:
    """Describe what separates a checkpoint of no known family from one of iBOT."""
    unknown, lacking = unknown_names(weights), [name for name in IBOT_CORE if name not in weights]
    if len(unknown) == len(weights):
        return f": its tensors are {_first(unknown)}"
    differences = [f"it lacks {_first(lacking)}"] * bool(lacking) + [f"it has {_first(unknown)}"] * bool(unknown)
    return f"; the nearest is ibot, but {' and '.join(differences)}"


def _first(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def unknown_names(keys: Collection[str]) -> list[str]:
    """Return the names that neither an encoder of iBOT nor one of its heads has."""
    heads = ("head.mlp.", "head.mlp2.", "head.last_layer.", "head.last_layer2.")
    classifiers = ("head.weight", "head.bias", "linear.weight", "linear.bias")
    return [
        key for key in keys if not ENCODER_NAME.fullmatch(key) and not key.startswith(heads) and key not in classifiers
    ]


def options(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the configuration that are known from the options of the original run."""
    return {name: args[option] for option, name in OPTIONS.items() if option in args}


def dropped(networks: Mapping[str, Mapping[str, Tensor]], config: PreTrainedConfig) -> list[str]:
    """Describe what is left behind or added, one line for each kind of tensor."""
    weights, lines = networks.get("model"), []
    if weights is not None and "masked_embed" not in weights:
        lines.append("mask token: not in the file, zero")
    if weights is not None and "linear.weight" in weights:
        lines.append("linear: taken for a classifier of the last CLS token (n_last_blocks 1, avgpool_patchtokens 0)")
    return lines


def convert(
    weights: Mapping[str, Tensor], name: str, num_attention_heads: int | None, overrides: Mapping[str, Any]
) -> PreTrainedModel:
    """
    Build the most complete iBOT model that the weights allow, in eval mode.

    Teachers have no mask token: it becomes zero, as at the start of training. Unless `norm_last_layer` is among the
    overrides, the values of the last layer's magnitudes decide whether they are learned: magnitudes that are all 1 are
    fixed.

    Args:
        weights (`Mapping[str, Tensor]`): One network of an [`OfficialCheckpoint`].
        name (`str`): File name, for messages.
        num_attention_heads (`int`, *optional*): Required if no published model has this width.
        overrides (`Mapping`): Fields of [`IBotConfig`].

    Returns:
        `PreTrainedModel`: An [`IBotForPreTraining`], [`IBotForImageClassification`] or [`IBotModel`].

    Raises:
        ValueError: If a tensor is missing, left over or has the wrong shape, or if the classifier needs features that
            [`IBotForImageClassification`] does not compute.
    """
    model_class, fields, tensors = translate(weights, name, num_attention_heads, overrides)
    config = checked_config(IBotConfig, fields, overrides)
    return load_strictly(model_class, config, tensors, name, official_name)


def translate(
    weights: Mapping[str, Tensor], name: str, num_attention_heads: int | None, overrides: Mapping[str, Any]
) -> tuple[type[PreTrainedModel], dict[str, Any], dict[str, Tensor]]:
    """
    Return the model class, the fields of the configuration, and the weights under our names and in their own type. The
    weights of q, k and v are views of the joint ones. Unknown tensors keep their names.
    """
    parts = split_parts(weights)
    fields = _encoder_fields(parts["encoder"], name, num_attention_heads, overrides)
    encoder = rename_tensors(parts["encoder"], NAMES, STACKS, {})
    mask_token = encoder.get("embeddings.mask_token", torch.zeros(1, fields["hidden_size"]))
    encoder["embeddings.mask_token"] = mask_token.unsqueeze(0)
    classes = (IBotModel, IBotForPreTraining, IBotForImageClassification)
    return assemble(classes, fields, fields["hidden_size"], encoder, parts, name, overrides)


def split_parts(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Split official tensors into `encoder`, `head` (projection head or classifier) and `linear` (classifier)."""
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "head": {}, "linear": {}}
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
    Combine an encoder with the heads in `parts` to the most complete model.

    Args:
        classes: Classes of the encoder, the pre-training model and the classifier.
        fields: Fields of the encoder's configuration.
        width: Width of the encoder's output.
        encoder: Tensors of the encoder under our names.
        parts: Official tensors, as [`split_parts`] returns them.
        name: File name, for messages.
        overrides: Fields of the configuration that the user gave.

    Returns:
        Class of the model, fields of its configuration, and its tensors under our names.
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
        head |= parts["linear"]  # a second classifier, if any, which loading reports
    encoder = {f"{model_class.base_model_prefix}.{key}": tensor for key, tensor in encoder.items()}
    return model_class, fields | head_fields, encoder | head


def official_name(ours: str) -> str:
    """Return the official name of a tensor of ours; for q, k and v, the name of the joint projection."""
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
        # The initial value is not saved. For trained weights, only the presence of layer scale matters.
        "layer_scale_init_value": 0.1 if "blocks.0.gamma_1" in weights else 0.0,
    }
    if side is not None:
        fields["image_size"] = side * patch_size
    return fields


def _projection_head(weights: Mapping[str, Tensor], name: str, overrides: Mapping) -> tuple[dict, dict[str, Tensor]]:
    """
    Return the fields and tensors of `iBOTHead`. The modules of its `mlp` are numbered, including activations. Modules
    with a matrix are linear layers; the others are one shared norm, saved under several numbers.
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
    fields: dict[str, Any] = {"head_num_layers": len(linears)}
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
    # A shared last layer is saved under both names.
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
    """Compare two tensors; without reading them if the file holds one tensor under both names."""
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
