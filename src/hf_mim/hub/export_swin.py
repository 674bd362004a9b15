"""Export iBOT with a Swin Transformer as transformers' own Swin, if that computes the same."""

import math

from torch.nn import Module
from transformers import PreTrainedModel, SwinConfig, SwinForImageClassification, SwinModel

from ..modeling.configuration_common import SHARED_SWIN_FIELDS
from ..modeling.configuration_ibot_swin import NATIVE_EPS
from .export_common import classifier_weights, is_classifier, labels


# Parts of the names of weights that write into the residual stream, directly or before a norm.
STREAM = ("embeddings.", ".o_proj.", ".fc2.", ".reduction.")


def native_swin(model: PreTrainedModel) -> PreTrainedModel:
    """
    Export a `SwinModel` whose `last_hidden_state` `[B, N, D]` are our patches and whose `pooler_output` is our mean
    patch, or a `SwinForImageClassification` with the same `logits`.

    Two norms of transformers' Swin have a fixed epsilon of 1e-5; ours is smaller in the released models. The exported
    weights compensate for this: all tokens between patch embedding and final norm are √(1e-5 / `layer_norm_eps`) times
    as large as ours, so that an epsilon of 1e-5 has the same effect. `hidden_states` differ by this factor; the
    outputs are the same.

    Raises:
        ValueError: If transformers' Swin computes different outputs at `config.image_size`.
    """
    config = model.config
    if config.why_no_native_swin is not None:
        raise ValueError(config.why_no_native_swin)
    fields = {name: getattr(config, name) for name in (*SHARED_SWIN_FIELDS, "drop_path_rate")}
    fields |= {"layer_norm_eps": NATIVE_EPS, "image_size": config.grid_size[0] * config.patch_size}
    factor = math.sqrt(NATIVE_EPS / config.layer_norm_eps)
    weights = {
        name: factor * tensor if any(part in name for part in STREAM) else tensor
        for name, tensor in model.base_model.state_dict().items()
        if name != "embeddings.mask_token"
    }
    native: PreTrainedModel
    if is_classifier(model):
        native = SwinForImageClassification(SwinConfig(**fields, **labels(config)))
        weights = {f"swin.{name}": tensor for name, tensor in weights.items()} | classifier_weights(model)
    else:
        native = SwinModel(SwinConfig(**fields))
    Module.to(native, model.dtype).load_state_dict(weights, strict=True)
    return native


def sizes_of_swin(config: SwinConfig) -> str:
    """Return the end of a sentence on the other image sizes at which an exported Swin is exact, or differs."""
    window = config.window_size
    assert isinstance(config.image_size, int) and isinstance(config.patch_size, int)
    patches = config.image_size // config.patch_size
    if math.ceil(patches / 2 ** (len(config.depths) - 1)) == window:
        return (
            f", and at other sizes with {window} x {window} patches in the last stage. With more, transformers' Swin "
            "moves windows that the original leaves in place; with fewer, it fails."
        )
    return (
        f", and at other sizes with more than {window} x {window} patches in the last stage. With as many, "
        "transformers' Swin leaves windows in place that the original moves; with fewer, it fails."
    )
