"""Official iBOT weights with a Vision Transformer (SPEC section 7 of the original code) as models of this package."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

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
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= set(keys):
        return False
    if "masked_embed" in keys or "head.last_layer2.weight_v" in keys:
        return True
    # A last layer for the CLS token alone is DINO's.
    return "head.last_layer.weight_v" not in keys and not unknown_to_ibot(keys)


def unknown_to_ibot(keys: Collection[str]) -> list[str]:
    """The names among these that neither an encoder of iBOT nor one of its heads has."""
    heads = ("head.mlp.", "head.mlp2.", "head.last_layer.", "head.last_layer2.")
    classifiers = ("head.weight", "head.bias", "linear.weight", "linear.bias")
    return [key for key in keys if _encoder_name(key) is None and not key.startswith(heads) and key not in classifiers]


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
    parts = split_parts(weights)
    fields = _encoder_fields(parts["encoder"], name, num_attention_heads, overrides)
    encoder = _encoder_weights(parts["encoder"])
    if "masked_embed" not in weights:
        encoder["embeddings.mask_token"] = torch.zeros(1, 1, fields["hidden_size"])
    classes = (IBotModel, IBotForPreTraining, IBotForImageClassification)
    return assemble(classes, fields, fields["hidden_size"], encoder, parts, name, overrides, official_name)


def split_parts(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The official tensors of encoder, projection head or classifier (`head`), and `linear` classifier."""
    parts = {"encoder": {}, "head": {}, "linear": {}}
    for key, tensor in weights.items():
        part = next((part for part in ("head", "linear") if key.startswith(f"{part}.")), "encoder")
        parts[part][key] = tensor
    return parts


def assemble(
    classes: tuple[type[PreTrainedModel], type[PreTrainedModel], type[PreTrainedModel]],
    fields: dict,
    width: int,
    encoder: dict[str, Tensor],
    parts: dict[str, dict[str, Tensor]],
    name: str,
    overrides: dict,
    official_name: Callable[[str], str],
) -> PreTrainedModel:
    """
    The most complete model of an encoder, of `width` channels and already under our names, and what `parts` hold
    beside it. The classes are those of the encoder, of pre-training and of the classifier; `official_name` gives the
    name in the file of one of ours, for messages.
    """
    encoder_class, pretraining_class, classifier_class = classes
    if any(key.startswith("head.mlp.") for key in parts["head"]):
        head_fields, head = _projection_head(parts["head"], name, overrides)
        model_class, fields = pretraining_class, fields | head_fields
    elif parts["head"] or parts["linear"]:
        prefix = "head" if parts["head"] else "linear"
        head = {key.replace(f"{prefix}.", "classifier."): tensor for key, tensor in parts[prefix].items()}
        if "classifier.weight" in head:
            _check_features(head["classifier.weight"], width, name)
            fields["num_labels"] = len(head["classifier.weight"])
        model_class = classifier_class
    else:
        model_class, head = encoder_class, {}
    if parts["head"]:
        head |= parts["linear"]  # one classifier too many, if any, which loading reports
    prefix = "" if model_class is encoder_class else f"{model_class.base_model_prefix}."
    config = checked_config(model_class.config_class, fields, overrides)
    ours = {key if key in parts["encoder"] else f"{prefix}{key}": tensor for key, tensor in encoder.items()}
    return load_strictly(model_class, config, ours | head, name, official_name)


def official_name(ours: str) -> str:
    """The official name of one of ours; that of the joint projection for q, k and v."""
    name = ours.removeprefix("ibot.")
    if name.startswith("head."):
        return next((f"head.{theirs}" for theirs, part in HEAD_RENAMES.items() if name == f"head.{part}"), name)
    name = name.replace("classifier.", "head.")
    if name.startswith("layers."):
        _, number, rest = name.split(".", 2)
        kind = rest.rsplit(".", 1)[-1]
        if rest.startswith(("attention.q_proj", "attention.k_proj", "attention.v_proj")):
            return f"blocks.{number}.attn.qkv.{kind}"
        for official, part in BLOCK_RENAMES.items():
            if rest.startswith(part):
                return f"blocks.{number}.{official}{rest.removeprefix(part)}"
    for official, part in RENAMES.items():
        if name.startswith(part):
            return official + name.removeprefix(part)
    return name


def _encoder_fields(weights: Mapping[str, Tensor], name: str, heads: int | None, overrides: dict) -> dict:
    ranks = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
    for key, rank in ranks.items():
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
    blocks = {key.split(".")[1] for key in weights if key.startswith("blocks.") and _encoder_name(key) is not None}
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


def _encoder_name(key: str) -> str | None:
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


def _encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under our names, what has none under its official one."""
    converted = {}
    for key, tensor in weights.items():
        ours = _encoder_name(key)
        if ours is None:
            converted[key] = tensor
        elif ".attn.qkv." in key:
            converted |= split_qkv(ours, key.rsplit(".", 1)[1], tensor)
        else:
            converted[ours] = tensor.unsqueeze(0) if key == "masked_embed" else tensor
    return converted


def _projection_head(weights: Mapping[str, Tensor], name: str, overrides: dict) -> tuple[dict, dict[str, Tensor]]:
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

    fields |= {"head_bottleneck_size": len(last), "out_dim": len(official["last_layer.weight_v"])}
    if "last_layer.weight_g" in official:
        fields["norm_last_layer"] = bool((official["last_layer.weight_g"].float() - 1).abs().max() < 1e-4)
    # A shared last layer is kept under both names.
    pairs = [(f"head.last_layer.{kind}", f"head.patch_last_layer.{kind}") for kind in ("direction", "magnitude")]
    differing = [
        patch for cls, patch in pairs if patch in head and not (cls in head and _equal(head[cls], head[patch]))
    ]
    fields["shared_head"] = not differing
    if overrides.get("shared_head", fields["shared_head"]):
        if differing:
            raise ValueError(f"{name}: last_layer and last_layer2 of the head differ, so that shared_head is false")
        head = {key: tensor for key, tensor in head.items() if not key.startswith("head.patch_last_layer.")}
    elif "last_layer2.weight_v" in official:
        fields["patch_out_dim"] = len(official["last_layer2.weight_v"])
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
