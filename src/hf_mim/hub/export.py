"""Export trained encoders as plain transformers models, which load without this package and without remote code."""

from collections.abc import Callable
from typing import Literal

import torch
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel, SwinConfig, ViTImageProcessorPil
from transformers.backbone_utils import BackboneMixin

from ..modeling.configuration_beitv2 import Beitv2Config
from ..modeling.configuration_dbot import DBotConfig
from ..modeling.configuration_ibot import IBotConfig
from ..modeling.configuration_ibot_swin import IBotSwinConfig
from ..modeling.image_processing_pil_mim import Beitv2ImageProcessorPil, DBotImageProcessorPil, IBotImageProcessorPil
from ..modeling.modeling_beitv2 import Beitv2Model
from ..modeling.modeling_dbot import DBotModel
from ..modeling.modeling_ibot import IBotModel
from ..modeling.modeling_ibot_swin import IBotSwinModel
from .export_beit import native_beit
from .export_swin import native_swin, sizes_of_swin
from .export_vit import native_dbot, native_ibot, native_vit_mae


Exporter = Callable[[PreTrainedModel], PreTrainedModel]
# For each configuration, the class of the encoder, which is also a part of the larger models, and the function that
# makes the native model. A tokenizer has no counterpart in transformers.
EXPORTERS: dict[type[PreTrainedConfig], tuple[type[PreTrainedModel], Exporter]] = {
    IBotConfig: (IBotModel, native_ibot),
    IBotSwinConfig: (IBotSwinModel, native_swin),
    Beitv2Config: (Beitv2Model, native_beit),
    DBotConfig: (DBotModel, native_dbot),
}


@torch.no_grad()
def export_native(model: PreTrainedModel, architecture: Literal["vit_mae"] | None = None) -> PreTrainedModel:
    """
    Copy a model into one of transformers that computes the same numbers and loads without this package.

    | model | becomes | with the same |
    |---|---|---|
    | encoder of iBOT or dBOT | `ViTModel` | `last_hidden_state` `[B, 1+N, D]` |
    | classifier of iBOT or dBOT | `ViTForImageClassification` | `logits` |
    | encoder of BEiT v2 | `BeitModel` | `last_hidden_state` and `pooler_output` |
    | classifier of BEiT v2 | `BeitForImageClassification` | `logits` |
    | encoder of dBOT, with mean pooling | `BeitModel` | `last_hidden_state` and `pooler_output` |
    | classifier of iBOT or dBOT, with mean pooling | `BeitForImageClassification` | `logits` |
    | encoder of iBOT with Swin | `SwinModel` | patches, as `last_hidden_state` `[B, N, D]` |
    | classifier of iBOT with Swin | `SwinForImageClassification` | `logits` |
    | encoder of dBOT, `architecture="vit_mae"` | `ViTMAEModel` | `last_hidden_state`, given the same `noise` |

    The `pooler_output` `[B, D]` of a ViT is the CLS token: `AutoModel` always builds a pooler, and this one is the
    identity. Layer scale is folded into the linear layer before it, fixed positions become a table, and stochastic
    depth is lost. A ViTMAE sees only the share 1 - `mask_ratio` of the patches that its `noise` leaves
    (`reference/dbot/SPEC.md` section 14).

    The `pooler_output` of a Swin is the mean of the patches. Between its first and its last norm, the tokens are
    √(1e-5 / `layer_norm_eps`) times as large as ours, √10 in the released models. For intermediate features and for
    further training, use our model. `AutoBackbone` adds norms of its own and computes other features.

    Mask token, decoder and pre-training heads are left out. The numbers are the same at `config.image_size`;
    [`other_sizes`] describes other sizes. For another size, call `resize_position_tables` of a BEiT v2 or dBOT model
    before the export.

    Args:
        model (`PreTrainedModel`): An encoder, classifier or pre-training model of iBOT, BEiT v2 or dBOT.
        architecture (`str`, *optional*): `"vit_mae"` for a `ViTMAEModel`; by default, the model from the table.

    Returns:
        `PreTrainedModel`: The native model in eval mode, with its own copy of the weights in the same type and on the
        same device.

    Raises:
        TypeError: If the model is none of these.
        ValueError: If transformers cannot express it: an iBOT encoder that pools by the mean, a BEiT v2 model or one
            that pools by the mean for images that are not square, a Swin whose windows are larger than the feature map
            of a stage, or a model other than dBOT's encoder as a ViTMAE.
    """
    if architecture not in (None, "vit_mae"):
        raise ValueError(
            f"architecture must be 'vit_mae' or none, which takes the one that fits, got {architecture!r}"
        )
    export = native_vit_mae if architecture == "vit_mae" else _find_exporter(model)
    native = export(model)
    torch.nn.Module.to(native, dtype=model.dtype, device=model.device)
    return native.eval()


def _find_exporter(model: PreTrainedModel) -> Exporter:
    if isinstance(model, PreTrainedModel) and not isinstance(model, BackboneMixin):
        for config_class, (encoder_class, exporter) in EXPORTERS.items():
            if isinstance(model.config, config_class) and isinstance(model.base_model, encoder_class):
                return exporter
    raise TypeError(f"export_native takes an encoder or model of iBOT, BEiT v2 or dBOT, got {type(model).__name__}")


def other_sizes(native: PreTrainedModel) -> str:
    """Describe at which image sizes an exported model differs from its source, and how."""
    config = native.config
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    exact = f"The numbers are exact at {height} x {width} pixels"
    if isinstance(config, SwinConfig):
        return f"{exact}{sizes_of_swin(config)}"
    if config.model_type != "beit":
        if height != width:
            return f"{exact}, and the model takes no other size: transformers resizes position tables of squares only."
        return (
            f"{exact}. At other sizes, which need interpolate_pos_encoding=True, they differ: transformers resizes "
            "the position table in another way."
        )
    if config.use_relative_position_bias or config.use_shared_relative_position_bias:
        return (
            f"{exact}. Other sizes are accepted, but there they differ: transformers resizes the tables of relative "
            "positions bilinearly, where BEiT v2 has a spline."
        )
    if config.use_absolute_position_embeddings:
        return (
            f"{exact}. Other sizes are accepted, but there they differ: transformers resizes the position table in "
            "another way."
        )
    return "The numbers are exact at every size: the model has no positions."


def native_image_processor(processor: BaseImageProcessor) -> BaseImageProcessor:
    """
    Return the same preprocessing as a class of transformers, so that `AutoImageProcessor` loads it if it is saved with
    an exported model. The backend (Pillow or torchvision) is that of `processor`.
    """
    settings = processor.to_dict()
    del settings["image_processor_type"]
    settings.pop("auto_map", None)
    if isinstance(processor, (IBotImageProcessorPil, Beitv2ImageProcessorPil, DBotImageProcessorPil)):
        return ViTImageProcessorPil(**settings)
    # Without torchvision, this import would log a warning and give the Pillow class.
    from transformers import ViTImageProcessor

    return ViTImageProcessor(**settings)
