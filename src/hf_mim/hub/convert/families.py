"""Find out which of the original codes wrote a checkpoint, and the module that converts it."""

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ...methods import FAMILIES, find_method
from .beitv2 import describe_ambiguity as describe_beit_ambiguity
from .beitv2 import has_beit_attention
from .dbot import may_match as may_be_dbot
from .ibot import describe_ambiguity as describe_vit_ambiguity
from .ibot import describe_differences


# Heads and neck of a segmentation model of mmseg, whose encoder was changed with them.
SEGMENTATION = ("decode_head.", "auxiliary_head.", "fpn1.")
SAVED = "a model of hf_mim or transformers already: load it with `from_pretrained`, it needs no conversion"
# Prefixes of tensors in checkpoints of other codes, and what such a checkpoint is.
OTHERS = (
    (
        "head.last_layer.weight_v",
        "DINO, whose head has no last_layer2: without `head.*`, the encoder converts like iBOT's",
    ),
    ("layer1.0.conv1.", "a ResNet"),
    *(
        (f"{prefix}embeddings.", SAVED)
        for prefix in ("", *(f"{name}." for name in (*FAMILIES, "vit", "beit", "swin")))
    ),
    ("quantizer.codebook", SAVED),
    ("0.module.linear.", "linear classifiers without their encoder: join them first (analysis/combine_ckpt.py)"),
)


class Converter(Protocol):
    """The functions that every module named in [`~hf_mim.methods.METHODS`] as a `converter` has."""

    def matches(self, weights: Mapping[str, Tensor]) -> bool:
        """Check whether tensors with official names are those of this family."""

    def shares_names(self, weights: Mapping[str, Tensor]) -> bool:
        """Check whether another family has models with these names, so that the user's choice counts."""

    def options(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the configuration that are known from the options of the original run."""

    def convert(
        self, weights: Mapping[str, Tensor], name: str, num_attention_heads: int | None, overrides: Mapping[str, Any]
    ) -> PreTrainedModel:
        """Build the most complete model that the weights allow, in eval mode."""

    def dropped(self, networks: Mapping[str, Mapping[str, Tensor]], config: PreTrainedConfig) -> list[str]:
        """Describe what is left behind or added, one line for each kind of tensor."""


def load_converter(family: str) -> Converter:
    """Import the module that converts checkpoints of a family."""
    converter = find_method(family).converter
    assert converter is not None
    return cast(Converter, importlib.import_module(converter))


def matching_families(weights: Mapping[str, Tensor]) -> list[str]:
    """
    Return the families to which these tensors belong, at most one. Where names alone do not separate iBOT from dBOT,
    the values of the position table do.
    """
    return [family for family in FAMILIES if load_converter(family).matches(weights)]


def find_family(weights: Mapping[str, Tensor], wanted: str | None, name: str) -> str:
    """
    Return the family to which these tensors belong, or the `wanted` one if the tensors are ambiguous.

    Args:
        weights (`Mapping[str, Tensor]`): Tensors with official names.
        wanted (`str`, *optional*): The user's choice.
        name (`str`): File name, for messages.

    Raises:
        ValueError: If they belong to no family or to another one than `wanted`, or if only the user can decide.
    """
    if wanted not in (None, *FAMILIES):
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {wanted!r}")
    if any(key.startswith(SEGMENTATION) for key in weights):
        raise ValueError(
            f"{name} is a segmentation model of mmseg, whose encoder was changed with its head: convert the "
            "pre-trained or fine-tuned file of the encoder instead"
        )
    found = matching_families(weights)
    if len(found) == 1 and wanted in (None, found[0]):
        return found[0]
    ambiguous = bool(found) or has_beit_attention(weights) or may_be_dbot(weights)
    if wanted is not None and ambiguous:
        if all(load_converter(family).shares_names(weights) for family in (wanted, *found)):
            return wanted
    raise ValueError(f"{name} {_description(weights, found, wanted)}")


def _description(weights: Mapping[str, Tensor], found: list[str], wanted: str | None) -> str:
    """Describe a checkpoint that cannot be converted."""
    if found:
        return f"is a checkpoint of the family {' or '.join(found)}, not {wanted}"
    ambiguity = describe_beit_ambiguity(weights) or describe_vit_ambiguity(weights)
    if ambiguity is not None:
        return ambiguity
    for start, description in OTHERS:
        if any(key.startswith(start) for key in weights):
            return f"looks like {description}"
    if set(weights) <= {"linear.weight", "linear.bias"}:
        return "is a linear classifier without its encoder: join them first (analysis/combine_ckpt.py)"
    return f"is of no family known here ({', '.join(FAMILIES)}){describe_differences(weights)}"
