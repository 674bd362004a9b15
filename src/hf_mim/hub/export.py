"""Trained encoders as plain transformers models, which load without this package and without remote code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from ..modeling.image_processing_pil_ibot import IBotImageProcessorPil
from ..modeling.modeling_ibot import IBotModel
from ..modeling.modeling_ibot_pretraining import IBotForPreTraining


if TYPE_CHECKING:
    from transformers import ViTImageProcessor

    from ..modeling.image_processing_ibot import IBotImageProcessor


# What our encoder and a native ViT have in common.
SHARED_FIELDS = (
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
    "qkv_bias",
)


@torch.no_grad()
def export_native(model: IBotModel | IBotForPreTraining) -> ViTModel:
    """
    Copies the encoder into a `ViTModel` of transformers that gives the same `last_hidden_state` `[B, 1+N, D]`.

    Its `pooler_output` `[B, D]` is the CLS token: `AutoModel` always builds a pooler, so this one is the identity.
    Layer scale is folded into the linear layer before it. The mask token and the projection head stay behind, and so
    does stochastic depth, which a `ViTModel` does not know; other image sizes than `config.image_size` need
    `interpolate_pos_encoding=True` there, and give slightly other numbers than here.

    Returns:
        A `ViTModel` in eval mode with its own copy of the weights, in their type and on their device.

    Raises:
        TypeError: If the model is not an iBOT encoder or pre-training model.
        ValueError: If it pools by the mean, which a `ViTModel` cannot express.
    """
    if not isinstance(model, (IBotModel, IBotForPreTraining)):
        raise TypeError(f"export_native takes an IBotModel or an IBotForPreTraining, got {type(model).__name__}")
    encoder = model.ibot if isinstance(model, IBotForPreTraining) else model
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

    native = ViTModel(ViTConfig(**{name: getattr(config, name) for name in SHARED_FIELDS}, pooler_act="linear"))
    native.load_state_dict(weights, strict=True)
    return native.to(dtype=encoder.dtype, device=encoder.device).eval()


def native_image_processor(
    processor: IBotImageProcessorPil | IBotImageProcessor,
) -> ViTImageProcessorPil | ViTImageProcessor:
    """
    The same preprocessing under a name that transformers knows; saved beside an exported model, `AutoImageProcessor`
    finds it. The backend (Pillow or torchvision) is that of `processor`.
    """
    if isinstance(processor, IBotImageProcessorPil):
        native_class = ViTImageProcessorPil
    else:
        # Without torchvision, transformers would warn here and hand out the Pillow class.
        from transformers import ViTImageProcessor as native_class
    settings = processor.to_dict()
    del settings["image_processor_type"]
    return native_class(**settings)
