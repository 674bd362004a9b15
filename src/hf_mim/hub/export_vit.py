"""iBOT and dBOT with a CLS token as transformers' ViT, and dBOT's encoder as its ViTMAE."""

import torch
from transformers import PreTrainedConfig, ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEModel, ViTModel

from ..modeling.configuration_common import LABEL_FIELDS, MAE_FIELDS, SHARED_FIELDS
from ..modeling.configuration_dbot import DBotConfig
from ..modeling.configuration_ibot import IBotConfig
from ..modeling.modeling_dbot import DBotForImageClassification, DBotModel
from ..modeling.modeling_dbot_pretraining import DBotForPreTraining
from ..modeling.modeling_ibot import IBotForImageClassification, IBotModel
from ..modeling.modeling_ibot_pretraining import IBotForPreTraining


def native_vit(
    model: IBotModel
    | IBotForPreTraining
    | IBotForImageClassification
    | DBotModel
    | DBotForPreTraining
    | DBotForImageClassification,
) -> ViTModel | ViTForImageClassification:
    """A model that pools by the CLS token as a ViT; see [`~hf_mim.hub.export.export_native`]."""
    config = model.config
    weights = vit_weights(model.base_model)
    if isinstance(model, (IBotForImageClassification, DBotForImageClassification)):
        native = ViTForImageClassification(_vit_config(config, **labels(config)))
        weights = {f"vit.{name}": tensor for name, tensor in weights.items()} | classifier_weights(model)
    else:
        # AutoModel always builds a pooler: this one is the identity.
        native = ViTModel(_vit_config(config, pooler_act="linear"))
        weights["pooler.dense.weight"] = torch.eye(config.hidden_size)
        weights["pooler.dense.bias"] = torch.zeros(config.hidden_size)
    native.load_state_dict(weights, strict=True)
    return native


def native_vit_mae(model: DBotModel | DBotForPreTraining) -> ViTMAEModel:
    """
    dBOT's encoder as one that sees only the patches which a mask leaves.

    Raises:
        ValueError: If the model is a classifier or pools by the mean.
    """
    config = model.config
    if isinstance(model, DBotForImageClassification):
        raise ValueError("ViTMAE is an encoder, it has no classifier: export the classifier as a ViT")
    if config.use_mean_pooling:
        raise ValueError("use_mean_pooling=True has no counterpart in ViTMAEModel: export the model without it")
    native = ViTMAEModel(ViTMAEConfig(**{name: getattr(config, name) for name in MAE_FIELDS}))
    native.load_state_dict(vit_weights(model.base_model), strict=True)
    return native


def vit_weights(encoder: IBotModel | DBotModel) -> dict[str, torch.Tensor]:
    """Its tensors, with layer scale folded into the linear layers before it and positions as a table."""
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


def position_weights(encoder: IBotModel | DBotModel) -> dict[str, torch.Tensor]:
    """The table of its own image size, also of positions that are computed."""
    if isinstance(encoder, IBotModel):
        return {}
    return {"embeddings.position_embeddings": encoder.embeddings.positions(encoder.config.grid_size)}


def classifier_weights(model: IBotForImageClassification | DBotForImageClassification) -> dict[str, torch.Tensor]:
    """Those of the linear layer on top."""
    return {f"classifier.{name}": tensor for name, tensor in model.classifier.state_dict().items()}


def labels(config: PreTrainedConfig) -> dict:
    """What a configuration says about classes."""
    return {name: getattr(config, name) for name in LABEL_FIELDS}


def _vit_config(config: IBotConfig | DBotConfig, **others) -> ViTConfig:
    return ViTConfig(**{name: getattr(config, name) for name in SHARED_FIELDS}, **others)
