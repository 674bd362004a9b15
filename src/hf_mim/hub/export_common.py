"""Parts of the exports that do not depend on the target: labels, classifier and position table."""

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..modeling.configuration_common import LABEL_FIELDS
from ..modeling.modeling_dbot import DBotModel


def labels(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the fields of a configuration that describe the classes."""
    return {name: getattr(config, name) for name in LABEL_FIELDS}


def is_classifier(model: PreTrainedModel) -> bool:
    """Check whether a model is an encoder with a linear classifier."""
    return hasattr(model, "classifier")


def classifier_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the weights of the linear classifier on top of an encoder."""
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith("classifier.")}


def position_weights(encoder: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the position table for the encoder's own image size; empty if `state_dict` has it already."""
    if not isinstance(encoder, DBotModel):
        return {}
    return {"embeddings.position_embeddings": encoder.embeddings.positions(encoder.config.grid_size)}
