"""iBOT with a Swin Transformer as transformers' own Swin, where that computes the same."""

import math

from transformers import SwinConfig, SwinForImageClassification, SwinModel

from ..modeling.configuration_common import SHARED_SWIN_FIELDS
from ..modeling.configuration_ibot_swin import NATIVE_EPS
from ..modeling.modeling_ibot_swin import IBotSwinForImageClassification, IBotSwinForPreTraining, IBotSwinModel
from .export_vit import classifier_weights, labels


# What is written into the tokens that run through all blocks, or normalised before it is.
STREAM = ("embeddings.", ".o_proj.", ".fc2.", ".reduction.")


def native_swin(
    model: IBotSwinModel | IBotSwinForPreTraining | IBotSwinForImageClassification,
) -> SwinModel | SwinForImageClassification:
    """
    A `SwinModel` whose `last_hidden_state` `[B, N, D]` are our patches and whose `pooler_output` is our mean patch, or
    a `SwinForImageClassification` with the same `logits`.

    Two of its norms have an epsilon of 1e-5 that cannot be set. Ours is smaller in the released models, so all tokens
    between patch embedding and final norm are √(1e-5 / `layer_norm_eps`) times as large there, which makes 1e-5 the
    same as ours: `hidden_states` differ by this factor from ours, and the outputs do not.

    Raises:
        ValueError: If transformers' Swin computes something else at `config.image_size`.
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
    if isinstance(model, IBotSwinForImageClassification):
        native = SwinForImageClassification(SwinConfig(**fields, **labels(config)))
        weights = {f"swin.{name}": tensor for name, tensor in weights.items()} | classifier_weights(model)
    else:
        native = SwinModel(SwinConfig(**fields))
    native.to(model.dtype).load_state_dict(weights, strict=True)
    return native


def sizes_of_swin(config: SwinConfig) -> str:
    """The rest of a sentence on the sizes at which an exported Swin is exact, beside its `image_size`, or differs."""
    window = config.window_size
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
