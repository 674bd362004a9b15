"""Which of the original codes wrote a checkpoint: found from its tensors, or said to be none that is known."""

from collections.abc import Mapping

from torch import Tensor

from ...utils.layout import MODEL_TYPES
from .beitv2 import has_beit_attention, is_beitv2
from .dbot import is_dbot, may_be_dbot
from .ibot import IBOT_CORE, is_ibot, unknown_to_ibot
from .ibot_swin import is_ibot_swin
from .renaming import square_side
from .vqkd import is_vqkd


# Heads and neck of a segmentation model of mmseg, whose encoder was changed with them.
SEGMENTATION = ("decode_head.", "auxiliary_head.", "fpn1.")
SAVED = "a model of hf_mim or transformers already, which `from_pretrained` reads: nothing is to be converted"
# What other codes' checkpoints can be told by, and what that says about them.
OTHERS = (
    (
        "head.last_layer.weight_v",
        "DINO, whose head has no last_layer2: without `head.*` the encoder is as iBOT's",
    ),
    ("layer1.0.conv1.", "a ResNet"),
    *((f"{name}embeddings.", SAVED) for name in ("", "ibot.", "beitv2.", "dbot.", "vit.", "beit.", "swin.")),
    ("quantizer.codebook", SAVED),
    ("0.module.linear.", "linear classifiers without their encoder: join them first (analysis/combine_ckpt.py)"),
)


def matching_families(weights: Mapping[str, Tensor]) -> list[str]:
    """
    The families to which these tensors belong, at most one. Where names alone do not tell iBOT from dBOT, the values
    of the position table do.
    """
    dbot = is_dbot(weights)
    matches = {
        "ibot": is_ibot(weights) and not (dbot or may_be_dbot(weights) or has_beit_attention(weights)),
        "ibot_swin": is_ibot_swin(weights),
        "beitv2": is_beitv2(weights),
        "vqkd": is_vqkd(weights),
        "dbot": dbot,
    }
    return [family for family in MODEL_TYPES if matches[family]]


def find_family(weights: Mapping[str, Tensor], wanted: str | None, name: str) -> str:
    """
    The family to which these tensors belong, the `wanted` one where they do not tell two apart.

    Raises:
        ValueError: If they are of no family or of another one than `wanted`, or if only the user can tell.
    """
    if wanted not in (None, *MODEL_TYPES):
        raise ValueError(f"family must be one of {', '.join(MODEL_TYPES)}, got {wanted!r}")
    if any(key.startswith(SEGMENTATION) for key in weights):
        raise ValueError(
            f"{name} is a segmentation model of mmseg, whose encoder was changed with its head: convert the "
            "pre-trained or fine-tuned file of the encoder instead"
        )
    found = matching_families(weights)
    if len(found) == 1 and wanted in (None, found[0]):
        return found[0]
    # Encoders and classifiers of two families have the same names: there the user's word counts.
    same_names = {"beitv2", "dbot"} if has_beit_attention(weights) else {"ibot", "dbot"}
    undecided = not found and (has_beit_attention(weights) or may_be_dbot(weights)) and wanted in same_names
    if wanted is not None and (undecided or {wanted, *found} == same_names):
        return wanted
    raise ValueError(f"{name} {_description(weights, found, wanted)}")


def _description(weights: Mapping[str, Tensor], found: list[str], wanted: str | None) -> str:
    """What a checkpoint that cannot be converted looks like."""
    if found:
        return f"is a checkpoint of the family {' or '.join(found)}, not {wanted}"
    if has_beit_attention(weights) and "lm_head.weight" in weights:
        shape = list(weights["lm_head.weight"].shape)
        return f"has an lm_head of {shape}: give the family, beitv2 if it predicts codes, dbot if it predicts features"
    if may_be_dbot(weights) and is_ibot(weights):
        if square_side(weights["pos_embed"].shape[1] - 1) is None:
            return "has positions of a grid that is no square, which do not tell: give the family, ibot or dbot"
        return "has positions that resemble dBOT's sines and cosines, but not closely: give the family, ibot or dbot"
    for start, description in OTHERS:
        if any(key.startswith(start) for key in weights):
            return f"looks like {description}"
    if set(weights) <= {"linear.weight", "linear.bias"}:
        return "is a linear classifier without its encoder: join them first (analysis/combine_ckpt.py)"
    unknown, lacking = unknown_to_ibot(weights), [name for name in IBOT_CORE if name not in weights]
    known = f"is of no family known here ({', '.join(MODEL_TYPES)})"
    if len(unknown) == len(weights):
        return f"{known}: its tensors are {_first(unknown)}"
    differences = [f"it lacks {_first(lacking)}"] * bool(lacking) + [f"it has {_first(unknown)}"] * bool(unknown)
    return f"{known}; the nearest is ibot, but {' and '.join(differences)}"


def _first(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
