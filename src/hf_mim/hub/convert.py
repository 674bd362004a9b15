"""Checkpoints that the original codes wrote, as models of this package."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import PILImageResampling

from ..modeling.image_processing_pil_ibot import IBotImageProcessorPil
from ..modeling.modeling_ibot import IBotForImageClassification
from .official_files import OfficialCheckpoint, read_official
from .official_ibot import convert_ibot, ibot_options, is_ibot


FAMILIES = ("ibot",)
# What other codes' checkpoints can be told by, and what that says about them.
OTHERS = (
    (
        "head.last_layer.weight_v",
        "DINO, whose head has no last_layer2: without `head.*`, its encoder is one of iBOT's",
    ),
    ("decoder_pred.", "MAE with its pixel decoder, which none of these methods has"),
    ("layer1.0.conv1.", "a ResNet"),
    ("embeddings.patch_embeddings.", "a model of transformers, which `from_pretrained` reads"),
    ("vit.embeddings.", "a model of transformers, which `from_pretrained` reads"),
    ("0.module.linear.", "linear classifiers without their encoder: join them first (analysis/combine_ckpt.py)"),
    ("linear.weight", "a linear classifier without its encoder: join them first (analysis/combine_ckpt.py)"),
    ("decode_head.", "a segmentation model: convert the encoder's own file"),
)


@dataclass
class ConvertedCheckpoint:
    """
    Result of [`convert_checkpoint`].

    Attributes:
        model (`PreTrainedModel`): The most complete model that the file supports; of a full iBOT checkpoint, the
            student.
        teacher (`PreTrainedModel`, *optional*): The teacher of a full iBOT checkpoint.
        config (`PreTrainedConfig`): That of `model`.
        centers (`dict[str, Tensor]`): `cls_center` `[K]` and `patch_center` `[P]` of a full iBOT checkpoint, as
            [`IBotTrainer`] keeps them beside its teacher; otherwise empty.
        dropped (`list[str]`): What the file holds besides, and why it is left behind.
        image_processor (`BaseImageProcessor`, *optional*): The transform with which the original evaluates it.
    """

    model: PreTrainedModel
    teacher: PreTrainedModel | None
    config: PreTrainedConfig
    centers: dict[str, Tensor] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    image_processor: BaseImageProcessor | None = None


def convert_checkpoint(
    source: str | Path | Mapping,
    family: str | None = None,
    num_attention_heads: int | None = None,
    **config_overrides: Any,
) -> ConvertedCheckpoint:
    """
    Convert a checkpoint of an original code, or a state dict with its names.

    Pickles are read without running any code in them. Sizes come from the shapes. Nothing is skipped in silence: a
    tensor that is neither used nor known to be superfluous, or that is missing, is an error that names it.

    Args:
        source (`str`, `Path` or `Mapping`): A `.pth`, `.pt`, `.bin` or `.safetensors` file, or what it holds.
        family (`str`, *optional*): `"ibot"`; found from the names of the tensors when not given.
        num_attention_heads (`int`, *optional*): Attention heads of the encoder; those of the published model of this
            width when not given.
        **config_overrides: Fields of the configuration that the weights do not tell, or tell wrongly.

    Returns:
        [`ConvertedCheckpoint`]: Models in float32 and eval mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, holds code, or is not of this family; if a tensor is missing, left over or
            of another shape; if the number of heads is not known; for an unknown or contradictory override.
    """
    checkpoint = read_official(source)
    networks = checkpoint.networks
    weights = networks["student" if "student" in networks else "model"]
    family = _family(weights, family, checkpoint.name)
    if "student" in networks:
        model = _convert(family, checkpoint, "student", num_attention_heads, config_overrides)
        # The teacher has the student's head; nothing in it is dropped at random.
        for_teacher = {name: getattr(model.config, name) for name in ("norm_last_layer",)} | {"drop_path_rate": 0.0}
        teacher = _convert(family, checkpoint, "teacher", num_attention_heads, config_overrides | for_teacher)
    else:
        model = _convert(family, checkpoint, "model", num_attention_heads, config_overrides)
        teacher = None
    return ConvertedCheckpoint(
        model=model,
        teacher=teacher,
        config=model.config,
        centers=_centers(checkpoint, teacher),
        dropped=checkpoint.dropped,
        image_processor=_image_processor(model, checkpoint.args),
    )


def matching_families(weights: Mapping[str, Tensor]) -> list[str]:
    """The families to which these official names may belong; an encoder alone has the same names in several."""
    return [family for family, matches in (("ibot", is_ibot(weights)),) if matches]


def _family(weights: Mapping[str, Tensor], wanted: str | None, name: str) -> str:
    if wanted not in (None, *FAMILIES):
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {wanted!r}")
    found = matching_families(weights)
    if found and wanted is None:
        return found[0]
    if wanted is not None and (wanted in found or not found):
        return wanted  # where the names fit no family, loading says which of them do not
    raise ValueError(f"{name} {_description(weights, found, wanted)}")


def _convert(
    family: str, checkpoint: OfficialCheckpoint, network: str, num_attention_heads: int | None, overrides: dict
) -> PreTrainedModel:
    weights, name = checkpoint.networks[network], checkpoint.name
    if family == "ibot":
        return convert_ibot(weights, name, num_attention_heads, **ibot_options(checkpoint.args) | overrides)
    raise ValueError(f"unknown family {family!r}")


def _description(weights: Mapping[str, Tensor], found: list[str], wanted: str | None) -> str:
    """What a checkpoint that cannot be converted looks like."""
    if found:
        return f"is a checkpoint of the family {' or '.join(found)}, not {wanted}"
    for start, description in OTHERS:
        if any(key.startswith(start) for key in weights):
            return f"looks like {description}"
    return f"is of no family known here ({', '.join(FAMILIES)}); its tensors are {', '.join(list(weights)[:5])}, ..."


def _centers(checkpoint: OfficialCheckpoint, teacher: PreTrainedModel | None) -> dict[str, Tensor]:
    if teacher is None or not checkpoint.centers:
        return {}
    config = teacher.config
    sizes = {"center": config.out_dim, "center2": config.out_dim if config.shared_head else config.patch_out_dim}
    for name, size in sizes.items():
        if name not in checkpoint.centers or checkpoint.centers[name].numel() != size:
            raise ValueError(f"{checkpoint.name}: ibot_loss must have a {name} of {size} numbers")
    return {
        name: checkpoint.centers[official].detach().flatten().to(torch.float32, copy=True)
        for name, official in (("cls_center", "center"), ("patch_center", "center2"))
    }


def _image_processor(model: PreTrainedModel, args: Mapping[str, Any]) -> BaseImageProcessor:
    """The original's transform for evaluation, at the size of the model's position table."""
    height, width = (side * model.config.patch_size for side in model.config.grid_size)
    side = min(height, width)
    settings: dict[str, Any] = {"crop_size": {"height": height, "width": width}}
    resized = round(side * 256 / 224)
    if isinstance(model, IBotForImageClassification) and "crop_pct" in args:
        # `run_class_finetuning.py` resizes bilinearly, and crops nothing off from 384 pixels on.
        settings["resample"] = PILImageResampling.BILINEAR
        resized = int(side / (args["crop_pct"] or (224 / 256 if side < 384 else 1.0)))
    settings["size"] = {"shortest_edge": resized}
    return IBotImageProcessorPil(**settings)
