"""Export BEiT v2, and iBOT and dBOT with mean pooling, as transformers' BEiT."""

import torch
from transformers import BeitConfig, BeitForImageClassification, BeitModel, PreTrainedModel

from ..modeling.configuration_common import SHARED_BEIT_FIELDS, VIT_FIELDS
from .export_common import classifier_weights, is_classifier, labels, position_weights


def native_beit(model: PreTrainedModel) -> PreTrainedModel:
    """
    Export a BEiT v2 model as a BEiT; see [`~hf_mim.hub.export.export_native`].

    Raises:
        ValueError: If its position tables are for images that are not square.
    """
    config = model.config
    if not config.has_native_beit:
        rows, columns = config.grid_size
        raise ValueError(
            f"the position tables are for {rows} x {columns} patches, and transformers' BEiT is wrong for images that "
            f"are not square: it takes rows of a relative table for columns, and an absolute table for a square"
        )
    fields = {name: getattr(config, name) for name in (*SHARED_BEIT_FIELDS, "drop_path_rate")}
    native: PreTrainedModel
    if is_classifier(model):
        native = BeitForImageClassification(BeitConfig(**fields, **labels(config)))
        weights = {name.replace("beitv2.", "beit.", 1): tensor for name, tensor in model.state_dict().items()}
    else:
        native = BeitModel(BeitConfig(**fields))
        weights = model.base_model.state_dict()
        weights.pop("embeddings.mask_token", None)
    native.load_state_dict(_with_biases(weights, native), strict=True)
    return native


def native_pooled_beit(model: PreTrainedModel) -> PreTrainedModel:
    """
    Export a model of iBOT or dBOT that pools by the mean as a BEiT without relative positions. BEiT has no key bias,
    and needs none: it shifts all attention logits of a query equally.

    Raises:
        ValueError: If its position table is for images that are not square.
    """
    config, encoder = model.config, model.base_model
    assert isinstance(encoder, PreTrainedModel)
    rows, columns = config.grid_size
    if rows != columns:
        raise ValueError(
            f"use_mean_pooling=True has a counterpart in transformers' BEiT alone, which takes the position table of "
            f"{rows} x {columns} patches for that of a square"
        )
    fields = {name: getattr(config, name) for name in (*VIT_FIELDS, "layer_scale_init_value", "drop_path_rate")}
    native_config = BeitConfig(
        **fields, use_absolute_position_embeddings=True, use_mean_pooling=True, **labels(config)
    )
    weights = encoder.state_dict() | position_weights(encoder)
    weights.pop("embeddings.mask_token", None)
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith("k_proj.bias")}
    # iBOT's norm of the mean patch has another name.
    weights = {name.replace("fc_norm.", "pooler.layernorm."): tensor for name, tensor in weights.items()}
    native: PreTrainedModel
    if is_classifier(model):
        native = BeitForImageClassification(native_config)
        weights = {f"beit.{name}": tensor for name, tensor in weights.items()} | classifier_weights(model)
    else:
        native = BeitModel(native_config)
    native.load_state_dict(_with_biases(weights, native), strict=True)
    return native


def _with_biases(weights: dict[str, torch.Tensor], native: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Add the biases of query and value, which a native BEiT always has: zero if ours has none (`qkv_bias=False`)."""
    biases = {
        name: torch.zeros_like(tensor)
        for name, tensor in native.state_dict().items()
        if name.endswith(("q_proj.bias", "v_proj.bias"))
    }
    return biases | weights
