"""Export iBOT and dBOT with a CLS token as transformers' ViT, and dBOT's encoder as its ViTMAE."""

import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)
from transformers.backbone_utils import BackboneMixin

from ..modeling.configuration_common import MAE_FIELDS, SHARED_FIELDS
from ..modeling.modeling_dbot import DBotModel
from .export_beit import native_pooled_beit
from .export_common import classifier_weights, is_classifier, labels, position_weights


def native_ibot(model: PreTrainedModel) -> PreTrainedModel:
    """
    Export an iBOT encoder or classifier.

    Raises:
        ValueError: If it is an encoder that pools by the mean.
    """
    if not model.config.use_mean_pooling:
        return native_vit(model)
    if not is_classifier(model):
        raise ValueError(
            "use_mean_pooling=True has no counterpart for an iBOT encoder: a BeitModel keeps the CLS token where "
            "iBOT puts the mean patch; export a classifier, or the model without it"
        )
    return native_pooled_beit(model)


def native_dbot(model: PreTrainedModel) -> PreTrainedModel:
    """Export a dBOT encoder or classifier."""
    return native_pooled_beit(model) if model.config.use_mean_pooling else native_vit(model)


def native_vit(model: PreTrainedModel) -> PreTrainedModel:
    """Export a model that pools by the CLS token as a ViT; see [`~hf_mim.hub.export.export_native`]."""
    config = model.config
    weights = vit_weights(model.base_model)
    native: PreTrainedModel
    if is_classifier(model):
        native = ViTForImageClassification(_vit_config(config, **labels(config)))
        weights = {f"vit.{name}": tensor for name, tensor in weights.items()} | classifier_weights(model)
    else:
        # AutoModel always builds a pooler. This one is the identity.
        native = ViTModel(_vit_config(config, pooler_act="linear"))
        weights["pooler.dense.weight"] = torch.eye(config.hidden_size)
        weights["pooler.dense.bias"] = torch.zeros(config.hidden_size)
    native.load_state_dict(weights, strict=True)
    return native


def native_vit_mae(model: PreTrainedModel) -> PreTrainedModel:
    """
    Export dBOT's encoder as a ViTMAE, which sees only the patches that a mask leaves.

    Raises:
        ValueError: If the model is not dBOT's, is a classifier, or pools by the mean.
    """
    if not isinstance(model.base_model, DBotModel) or isinstance(model, BackboneMixin):
        raise ValueError(f"only dBOT's encoder can become a ViTMAE, got {type(model).__name__}")
    config = model.config
    if is_classifier(model):
        raise ValueError("ViTMAE is an encoder, it has no classifier: export the classifier as a ViT")
    if config.use_mean_pooling:
        raise ValueError("use_mean_pooling=True has no counterpart in ViTMAEModel: export the model without it")
    native = ViTMAEModel(ViTMAEConfig(**{name: getattr(config, name) for name in MAE_FIELDS}))
    native.load_state_dict(vit_weights(model.base_model), strict=True)
    return native


def vit_weights(encoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    """
    Return the tensors of an encoder, with layer scale folded into the linear layers before it and positions as a
    table.
    """
    assert isinstance(encoder, PreTrainedModel)
    weights = encoder.state_dict()
    weights.pop("embeddings.mask_token", None)
    if encoder.config.layer_scale_init_value > 0:
        for i in range(encoder.config.num_hidden_layers):
            for scale, linear in (("lambda_1", "attention.o_proj"), ("lambda_2", "mlp.fc2")):
                factor = weights.pop(f"layers.{i}.{scale}")
                weight, bias = f"layers.{i}.{linear}.weight", f"layers.{i}.{linear}.bias"
                weights[weight] = factor[:, None] * weights[weight]
                weights[bias] = factor * weights[bias]
    return weights | position_weights(encoder)


def _vit_config(config: PreTrainedConfig, **others) -> ViTConfig:
    return ViTConfig(**{name: getattr(config, name) for name in SHARED_FIELDS}, **others)
