"""Helpers of all converters: sizes from shapes, renaming, and strict loading."""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ...utils.config_overrides import check_overrides
from ...utils.loading import check_depth, describe_not_finite


Config = TypeVar("Config", bound=PreTrainedConfig)
Model = TypeVar("Model", bound=PreTrainedModel)
# Parts of a block in every official Vision Transformer, except for the joint projection of query, key and value.
BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "gamma_1": "lambda_1",
    "gamma_2": "lambda_2",
}
# Attention heads of the published Vision Transformers by width: shapes do not show them.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}


def published_heads(width: int, num_attention_heads: int | None) -> int:
    """
    Return `num_attention_heads` if given, otherwise the number of heads of the published model of this width.

    Raises:
        ValueError: If no number is given and there is no published model of this width.
    """
    if num_attention_heads is not None:
        return num_attention_heads
    if width not in HEADS:
        known = ", ".join(map(str, HEADS))
        raise ValueError(
            f"num_attention_heads must be given: a width of {width} is not a published one ({known}), and the weights "
            f"do not tell"
        )
    return HEADS[width]


def square_side(num_patches: int) -> int | None:
    """Return the side of a square grid of `num_patches`, or None if there is no such grid."""
    side = round(max(num_patches, 0) ** 0.5)
    return side if side * side == num_patches else None


def split_qkv(attention: str, kind: str, joint: Tensor) -> dict[str, Tensor]:
    """
    Split a joint projection `[3D, ...]` into the `kind` (weight or bias) of the projections q, k and v of `attention`.

    Raises:
        ValueError: If its rows are not three equal blocks.
    """
    if joint.ndim == 0 or len(joint) % 3:
        raise ValueError(f"{attention}: the joint {kind} of q, k and v has shape {list(joint.shape)}")
    return {f"{attention}.{name}_proj.{kind}": part for name, part in zip("qkv", joint.chunk(3), strict=True)}


def rename_tensors(
    official: Mapping[str, Tensor], names: Mapping[str, str], stacks: Mapping[str, str], block_names: Mapping[str, str]
) -> dict[str, Tensor]:
    """
    Rename the tensors of an official Vision Transformer. Unknown tensors keep their official names.

    Args:
        official (`Mapping[str, Tensor]`): Tensors with official names; joint projections are split.
        names (`Mapping[str, str]`): Official names of modules and tensors outside of the blocks -> our names.
        stacks (`Mapping[str, str]`): Official names of the lists of blocks -> our names.
        block_names (`Mapping[str, str]`): Official names inside a block, in addition to `BLOCK` -> our names.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in official.items():
        place, inner = _place(key, stacks)
        known = {**BLOCK, **block_names} if place else names
        module, _, kind = inner.rpartition(".")
        if place and module == "attn.qkv":
            renamed |= split_qkv(f"{place}attention", kind, tensor)
        elif inner in known:
            renamed[place + known[inner]] = tensor
        elif module in known and kind in ("weight", "bias"):
            renamed[f"{place}{known[module]}.{kind}"] = tensor
        else:
            renamed[key] = tensor
    return renamed


def original_name(
    ours: str, names: Mapping[str, str], stacks: Mapping[str, str], block_names: Mapping[str, str]
) -> str:
    """Return the official name of the tensor that [`rename_tensors`] calls `ours`, given the same mappings."""
    place, inner = _place(ours, {our_stack: stack for stack, our_stack in stacks.items()})
    for official, name in ({**BLOCK, **block_names} if place else names).items():
        if inner in (name, f"{name}.weight", f"{name}.bias"):
            return place + official + inner.removeprefix(name)
    module, _, kind = inner.rpartition(".")
    return f"{place}attn.qkv.{kind}" if module.startswith("attention.") else ours


def _place(name: str, stacks: Mapping[str, str]) -> tuple[str, str]:
    """
    Split a tensor name into its block, under the other naming scheme, and the name inside the block. Names outside of
    the blocks give `("", name)`.
    """
    for stack, other in stacks.items():
        number, _, rest = name.removeprefix(f"{stack}.").partition(".")
        if name.startswith(f"{stack}.") and number.isdecimal():
            return f"{other}.{number}.", rest
    return "", name


def count_blocks(weights: Mapping[str, Tensor], stack: str, source_name: str) -> int:
    """
    Count the blocks with official names `{stack}.{number}.…`.

    Raises:
        ValueError: If a number below the highest is missing.
    """
    parts = {key.removeprefix(f"{stack}.").split(".")[0] for key in weights if key.startswith(f"{stack}.")}
    numbers = {int(part) for part in parts if part.isdecimal()}
    missing = next((number for number in range(len(numbers)) if number not in numbers), None)
    if missing is not None:
        raise ValueError(f"{source_name} has {stack}.{max(numbers)}, and no {stack}.{missing}")
    return len(numbers)


def needed(weights: Mapping[str, Tensor], key: str, ndim: int, source_name: str) -> Tensor:
    """
    Return a tensor from which sizes are read.

    Raises:
        ValueError: If it is missing or has another number of dimensions.
    """
    if key not in weights:
        raise ValueError(f"{source_name} has no tensor {key}")
    if weights[key].ndim != ndim:
        raise ValueError(f"{source_name}: {key} has shape {list(weights[key].shape)}, {ndim} dimensions are wanted")
    return weights[key]


def left_behind(weights: Mapping[str, Tensor], pattern: str, reason: str) -> list[str]:
    """Return one line about the tensors whose official names match `pattern`, or none if there are no such tensors."""
    names = fnmatch.filter(weights, pattern)
    if not names:
        return []
    return [f"{names[0]}: {reason}" if len(names) == 1 else f"{pattern} ({len(names)} tensors): {reason}"]


def checked_config(config_class: type[Config], fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> Config:
    """
    Build a configuration from the fields that the weights determine and the user's overrides, which win.

    Raises:
        ValueError: As [`check_overrides`], or if sizes do not fit together.
    """
    overrides = check_overrides(overrides, config_class)
    check_depth(overrides)
    try:
        config = config_class(**{**fields, **overrides})
    except StrictDataclassError as error:
        raise ValueError(f"configuration of the model: {error.__cause__ or error}") from error
    names = len(overrides.get("id2label", config.id2label or {}))
    if names != config.num_labels:
        raise ValueError(f"config_overrides: id2label names {names} of {config.num_labels} classes")
    return config


def load_strictly(
    model_class: type[Model],
    config: PreTrainedConfig,
    weights: Mapping[str, Tensor],
    source_name: str,
    official_name: Callable[[str], str] = str,
    **options: bool,
) -> Model:
    """
    Build a model with its own copy of these weights, in float32 and eval mode.

    The model is created on the meta device and the weights are assigned, so that only one copy of them is made. Half
    precision and float64 become float32; integers keep their values.

    Args:
        model_class (`type`): Class of the model.
        config (`PreTrainedConfig`): Its configuration.
        weights (`Mapping[str, Tensor]`): Tensors under our names; unknown ones under their official names. They may be
            views of each other or of a memory-mapped file.
        source_name (`str`): File name, for messages.
        official_name (`Callable`, *optional*): Maps one of our names to the name in the file, for messages.
        **options: Further arguments of the class.

    Raises:
        ValueError: If a tensor is missing, left over, has the wrong shape, is not of a floating-point type or not
            finite in float32; the message names it.
    """
    with torch.device("meta"):
        model = model_class(config, **options)
    expected = model.state_dict()
    problems = {
        "not used": [official_name(name) for name in weights if name not in expected],
        "missing": [official_name(name) for name in expected if name not in weights],
    }
    if any(problems.values()):
        details = "; ".join(f"{problem} {_listed(names)}" for problem, names in problems.items() if names)
        raise ValueError(f"{source_name} does not fit {model_class.__name__}: {details}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{source_name} does not fit {model_class.__name__}: {official_name(name)} gives {name} the shape "
                f"{list(tensor.shape)}, {list(expected[name].shape)} is wanted"
            )
        if expected[name].is_floating_point() and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{source_name}: {official_name(name)} is of {kind}, weights of real numbers are wanted")
    owned = {
        name: tensor.detach().to(expected[name].dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    for name, tensor in owned.items():
        # Without values, only names and shapes are converted.
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
            found = describe_not_finite(tensor)
            if weights[name].isfinite().all():
                found = "values beyond the range of float32"
            raise ValueError(f"{source_name}: {official_name(name)} holds {found}: the run that wrote it had diverged")
    model.load_state_dict(owned, strict=True, assign=True)
    return model.eval()


def _listed(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
