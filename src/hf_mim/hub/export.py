"""Trained encoders as plain transformers models, which load without this package and without remote code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitModel,
    PreTrainedConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from ..modeling.configuration_beitv2 import Beitv2Config
from ..modeling.configuration_dbot import DBotConfig
from ..modeling.configuration_ibot import IBotConfig
from ..modeling.image_processing_pil_beitv2 import Beitv2ImageProcessorPil
from ..modeling.image_processing_pil_dbot import DBotImageProcessorPil
from ..modeling.image_processing_pil_ibot import IBotImageProcessorPil
from ..modeling.modeling_beitv2 import Beitv2ForImageClassification, Beitv2Model
from ..modeling.modeling_beitv2_pretraining import Beitv2ForPreTraining
from ..modeling.modeling_dbot import DBotForImageClassification, DBotModel
from ..modeling.modeling_dbot_pretraining import DBotForPreTraining
from ..modeling.modeling_ibot import IBotModel
from ..modeling.modeling_ibot_pretraining import IBotForPreTraining


if TYPE_CHECKING:
    from transformers import ViTImageProcessor

    from ..modeling.image_processing_beitv2 import Beitv2ImageProcessor
    from ..modeling.image_processing_dbot import DBotImageProcessor
    from ..modeling.image_processing_ibot import IBotImageProcessor


COMMON_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
)
# What our encoders and the native ones have in common: iBOT or dBOT and ViT, BEiT v2 and BEiT.
SHARED_FIELDS = (*COMMON_FIELDS, "qkv_bias")
SHARED_BEIT_FIELDS = (
    *COMMON_FIELDS,
    "use_absolute_position_embeddings",
    "use_relative_position_bias",
    "use_shared_relative_position_bias",
    "layer_scale_init_value",
    "use_mean_pooling",
)


@torch.no_grad()
def export_native(
    model: IBotModel
    | IBotForPreTraining
    | Beitv2Model
    | Beitv2ForPreTraining
    | Beitv2ForImageClassification
    | DBotModel
    | DBotForPreTraining
    | DBotForImageClassification,
) -> ViTModel | ViTForImageClassification | BeitModel | BeitForImageClassification:
    """
    Copies a model into one of transformers that gives the same numbers, and loads without this package.

    - iBOT's encoder becomes a `ViTModel` with the same `last_hidden_state` `[B, 1+N, D]`. Its `pooler_output` `[B, D]`
      is the CLS token: `AutoModel` always builds a pooler, so this one is the identity. Layer scale is folded into
      the linear layer before it, and stochastic depth, which a `ViTModel` does not know, stays behind.
    - BEiT v2's encoder becomes a `BeitModel` with the same `last_hidden_state` and `pooler_output`, its classifier a
      `BeitForImageClassification` with the same `logits`.
    - dBOT's encoder becomes a `ViTModel` as iBOT's does, its classifier a `ViTForImageClassification`; with mean
      pooling, which a ViT does not know, a `BeitModel` or a `BeitForImageClassification`. Its key bias, which BEiT
      does not have, moves all logits of a query alike and changes nothing. Fixed positions become a table.

    Mask token and pre-training heads stay behind. Other image sizes than `config.image_size` give other numbers than
    here: `ViTModel` needs `interpolate_pos_encoding=True` for them and differs slightly; `BeitModel` takes all sizes
    but resizes relative tables bilinearly, and differs more. For another size, call `resize_position_tables` of a
    BEiT v2 model before the export.

    Returns:
        The native model in eval mode with its own copy of the weights, in their type and on their device.

    Raises:
        TypeError: If the model is none of these.
        ValueError: If transformers cannot express it: an iBOT encoder that pools by the mean, or a BEiT v2 model, or
            a dBOT model that pools by the mean, for images that are not square.
    """
    if isinstance(model, (IBotModel, IBotForPreTraining)):
        native = _native_vit(model.base_model)
    elif isinstance(model, (Beitv2Model, Beitv2ForPreTraining, Beitv2ForImageClassification)):
        native = _native_beit(model)
    elif isinstance(model, (DBotModel, DBotForPreTraining, DBotForImageClassification)):
        native = _native_pooled_dbot(model) if model.config.use_mean_pooling else _native_dbot(model)
    else:
        raise TypeError(
            f"export_native takes an encoder or model of iBOT, BEiT v2 or dBOT, got {type(model).__name__}"
        )
    return native.to(dtype=model.dtype, device=model.device).eval()


def _native_vit(encoder: IBotModel) -> ViTModel:
    config = encoder.config
    if config.use_mean_pooling:
        raise ValueError("use_mean_pooling=True has no counterpart in ViTModel: export the model without it")

    weights = _vit_weights(encoder)
    del weights["embeddings.mask_token"]
    weights |= _identity_pooler(config.hidden_size)
    native = ViTModel(_vit_config(config, pooler_act="linear"))
    native.load_state_dict(weights, strict=True)
    return native


def _vit_config(config: IBotConfig | DBotConfig, **others) -> ViTConfig:
    return ViTConfig(**{name: getattr(config, name) for name in SHARED_FIELDS}, **others)


def _vit_weights(encoder: IBotModel | DBotModel) -> dict[str, torch.Tensor]:
    """Its tensors, with layer scale folded into the linear layers before it."""
    weights = encoder.state_dict()
    if encoder.config.layer_scale_init_value > 0:
        for i in range(encoder.config.num_hidden_layers):
            for scale, linear in (("lambda_1", "attention.o_proj"), ("lambda_2", "mlp.fc2")):
                factor = weights.pop(f"layers.{i}.{scale}")
                weight, bias = f"layers.{i}.{linear}.weight", f"layers.{i}.{linear}.bias"
                weights[weight] = factor[:, None] * weights[weight]
                weights[bias] = factor * weights[bias]
    return weights


def _identity_pooler(width: int) -> dict[str, torch.Tensor]:
    return {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}


def _labels(config: PreTrainedConfig) -> dict:
    return {"id2label": config.id2label, "label2id": config.label2id, "problem_type": config.problem_type}


def _positions(encoder: DBotModel) -> dict[str, torch.Tensor]:
    return {"embeddings.position_embeddings": encoder.embeddings.positions(encoder.config.grid_size)}


def _native_dbot(
    model: DBotModel | DBotForPreTraining | DBotForImageClassification,
) -> ViTModel | ViTForImageClassification:
    config, encoder = model.config, model.base_model
    weights = _vit_weights(encoder) | _positions(encoder)
    if isinstance(model, DBotForImageClassification):
        native = ViTForImageClassification(_vit_config(config, **_labels(config)))
        weights = {f"vit.{name}": tensor for name, tensor in weights.items()} | _classifier(model)
    else:
        native = ViTModel(_vit_config(config, pooler_act="linear"))
        weights |= _identity_pooler(config.hidden_size)
    native.load_state_dict(weights, strict=True)
    return native


def _native_pooled_dbot(model: DBotModel | DBotForImageClassification) -> BeitModel | BeitForImageClassification:
    config, encoder = model.config, model.base_model
    rows, columns = config.grid_size
    if rows != columns:
        raise ValueError(
            f"use_mean_pooling=True has a counterpart in transformers' BEiT alone, which takes the position table of "
            f"{rows} x {columns} patches for that of a square"
        )
    fields = {name: getattr(config, name) for name in (*COMMON_FIELDS, "layer_scale_init_value", "drop_path_rate")}
    native_config = BeitConfig(**fields, use_absolute_position_embeddings=True, **_labels(config))
    weights = encoder.state_dict() | _positions(encoder)
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith("k_proj.bias")}
    if isinstance(model, DBotForImageClassification):
        native = BeitForImageClassification(native_config)
        weights = {f"beit.{name}": tensor for name, tensor in weights.items()} | _classifier(model)
    else:
        native = BeitModel(native_config)
    native.load_state_dict(_with_biases(weights, native), strict=True)
    return native


def _classifier(model: DBotForImageClassification) -> dict[str, torch.Tensor]:
    return {f"classifier.{name}": tensor for name, tensor in model.classifier.state_dict().items()}


def has_native_beit(config: Beitv2Config) -> bool:
    """Whether transformers' BEiT gives the same numbers: it reads the tables of images that are not square wrongly."""
    has_tables = (
        config.use_absolute_position_embeddings
        or config.use_relative_position_bias
        or config.use_shared_relative_position_bias
    )
    return config.grid_size[0] == config.grid_size[1] or not has_tables


def _native_beit(
    model: Beitv2Model | Beitv2ForPreTraining | Beitv2ForImageClassification,
) -> BeitModel | BeitForImageClassification:
    config = model.config
    if not has_native_beit(config):
        rows, columns = config.grid_size
        raise ValueError(
            f"the position tables are for {rows} x {columns} patches, and transformers' BEiT is wrong for images that "
            f"are not square: it takes rows of a relative table for columns, and an absolute table for a square"
        )
    fields = {name: getattr(config, name) for name in (*SHARED_BEIT_FIELDS, "drop_path_rate")}
    if isinstance(model, Beitv2ForImageClassification):
        native = BeitForImageClassification(BeitConfig(**fields, **_labels(config)))
        weights = {name.replace("beitv2.", "beit.", 1): tensor for name, tensor in model.state_dict().items()}
    else:
        native = BeitModel(BeitConfig(**fields))
        weights = model.base_model.state_dict()
        weights.pop("embeddings.mask_token", None)
    native.load_state_dict(_with_biases(weights, native), strict=True)
    return native


def _with_biases(
    weights: dict[str, torch.Tensor], native: BeitModel | BeitForImageClassification
) -> dict[str, torch.Tensor]:
    """Query and value always have a bias in a native BEiT: zero where ours has none (`qkv_bias=False`)."""
    biases = {
        name: torch.zeros_like(tensor)
        for name, tensor in native.state_dict().items()
        if name.endswith(("q_proj.bias", "v_proj.bias"))
    }
    return biases | weights


def native_image_processor(
    processor: IBotImageProcessorPil
    | IBotImageProcessor
    | Beitv2ImageProcessorPil
    | Beitv2ImageProcessor
    | DBotImageProcessorPil
    | DBotImageProcessor,
) -> ViTImageProcessorPil | ViTImageProcessor:
    """
    The same preprocessing under a name that transformers knows; saved beside an exported model, `AutoImageProcessor`
    finds it. The backend (Pillow or torchvision) is that of `processor`.
    """
    if isinstance(processor, (IBotImageProcessorPil, Beitv2ImageProcessorPil, DBotImageProcessorPil)):
        native_class = ViTImageProcessorPil
    else:
        # Without torchvision, transformers would warn here and hand out the Pillow class.
        from transformers import ViTImageProcessor as native_class
    settings = processor.to_dict()
    del settings["image_processor_type"]
    settings.pop("auto_map", None)
    return native_class(**settings)
