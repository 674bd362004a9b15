"""Trained encoders as plain transformers models, which load without this package and without remote code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from ..modeling.configuration_beitv2 import Beitv2Config
from ..modeling.image_processing_pil_beitv2 import Beitv2ImageProcessorPil
from ..modeling.image_processing_pil_ibot import IBotImageProcessorPil
from ..modeling.modeling_beitv2 import Beitv2ForImageClassification, Beitv2Model
from ..modeling.modeling_beitv2_pretraining import Beitv2ForPreTraining
from ..modeling.modeling_ibot import IBotModel
from ..modeling.modeling_ibot_pretraining import IBotForPreTraining


if TYPE_CHECKING:
    from transformers import ViTImageProcessor

    from ..modeling.image_processing_beitv2 import Beitv2ImageProcessor
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
# What our encoders and the native ones have in common: iBOT and ViT, BEiT v2 and BEiT.
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
    model: IBotModel | IBotForPreTraining | Beitv2Model | Beitv2ForPreTraining | Beitv2ForImageClassification,
) -> ViTModel | BeitModel | BeitForImageClassification:
    """
    Copies a model into one of transformers that gives the same numbers, and loads without this package.

    - iBOT's encoder becomes a `ViTModel` with the same `last_hidden_state` `[B, 1+N, D]`. Its `pooler_output` `[B, D]`
      is the CLS token: `AutoModel` always builds a pooler, so this one is the identity. Layer scale is folded into
      the linear layer before it, and stochastic depth, which a `ViTModel` does not know, stays behind.
    - BEiT v2's encoder becomes a `BeitModel` with the same `last_hidden_state` and `pooler_output`, its classifier a
      `BeitForImageClassification` with the same `logits`.

    Mask token and pre-training heads stay behind. Other image sizes than `config.image_size` give other numbers than
    here: `ViTModel` needs `interpolate_pos_encoding=True` for them and differs slightly; `BeitModel` takes all sizes
    but resizes relative tables bilinearly, and differs more. For another size, call `resize_position_tables` of a
    BEiT v2 model before the export.

    Returns:
        The native model in eval mode with its own copy of the weights, in their type and on their device.

    Raises:
        TypeError: If the model is none of these.
        ValueError: If transformers cannot express it: an iBOT encoder that pools by the mean, or a BEiT v2 model for
            images that are not square.
    """
    if isinstance(model, (IBotModel, IBotForPreTraining)):
        native = _native_vit(model.base_model)
    elif isinstance(model, (Beitv2Model, Beitv2ForPreTraining, Beitv2ForImageClassification)):
        native = _native_beit(model)
    else:
        raise TypeError(f"export_native takes an iBOT or BEiT v2 encoder or model, got {type(model).__name__}")
    return native.to(dtype=model.dtype, device=model.device).eval()


def _native_vit(encoder: IBotModel) -> ViTModel:
    config = encoder.config
    if config.use_mean_pooling:
        raise ValueError("use_mean_pooling=True has no counterpart in ViTModel: export the model without it")

    weights = encoder.state_dict()
    del weights["embeddings.mask_token"]
    if config.layer_scale_init_value > 0:
        for i in range(config.num_hidden_layers):
            for scale, linear in (("lambda_1", "attention.o_proj"), ("lambda_2", "mlp.fc2")):
                factor = weights.pop(f"layers.{i}.{scale}")
                weight, bias = f"layers.{i}.{linear}.weight", f"layers.{i}.{linear}.bias"
                weights[weight] = factor[:, None] * weights[weight]
                weights[bias] = factor * weights[bias]
    weights["pooler.dense.weight"] = torch.eye(config.hidden_size)
    weights["pooler.dense.bias"] = torch.zeros(config.hidden_size)

    fields = {name: getattr(config, name) for name in SHARED_FIELDS}
    native = ViTModel(ViTConfig(**fields, pooler_act="linear"))
    native.load_state_dict(weights, strict=True)
    return native


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
        labels = {"id2label": config.id2label, "label2id": config.label2id, "problem_type": config.problem_type}
        native = BeitForImageClassification(BeitConfig(**fields, **labels))
        weights = {name.replace("beitv2.", "beit.", 1): tensor for name, tensor in model.state_dict().items()}
    else:
        native = BeitModel(BeitConfig(**fields))
        weights = model.base_model.state_dict()
        weights.pop("embeddings.mask_token", None)
    if not config.qkv_bias:
        # A native block always has these two.
        expected = native.state_dict()
        weights |= {
            name: torch.zeros_like(expected[name])
            for name in expected
            if name.endswith(("q_proj.bias", "v_proj.bias"))
        }
    native.load_state_dict(weights, strict=True)
    return native


def native_image_processor(
    processor: IBotImageProcessorPil | IBotImageProcessor | Beitv2ImageProcessorPil | Beitv2ImageProcessor,
) -> ViTImageProcessorPil | ViTImageProcessor:
    """
    The same preprocessing under a name that transformers knows; saved beside an exported model, `AutoImageProcessor`
    finds it. The backend (Pillow or torchvision) is that of `processor`.
    """
    if isinstance(processor, (IBotImageProcessorPil, Beitv2ImageProcessorPil)):
        native_class = ViTImageProcessorPil
    else:
        # Without torchvision, transformers would warn here and hand out the Pillow class.
        from transformers import ViTImageProcessor as native_class
    settings = processor.to_dict()
    del settings["image_processor_type"]
    return native_class(**settings)
