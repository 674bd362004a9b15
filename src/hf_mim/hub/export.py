"""Trained encoders as plain transformers models, which load without this package and without remote code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from transformers import (
    BeitForImageClassification,
    BeitModel,
    SwinForImageClassification,
    SwinModel,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTMAEModel,
    ViTModel,
)

from ..modeling.image_processing_pil_mim import Beitv2ImageProcessorPil, DBotImageProcessorPil, IBotImageProcessorPil
from ..modeling.modeling_beitv2 import Beitv2ForImageClassification, Beitv2Model
from ..modeling.modeling_beitv2_pretraining import Beitv2ForPreTraining
from ..modeling.modeling_dbot import DBotForImageClassification, DBotModel
from ..modeling.modeling_dbot_pretraining import DBotForPreTraining
from ..modeling.modeling_ibot import IBotForImageClassification, IBotModel
from ..modeling.modeling_ibot_pretraining import IBotForPreTraining
from ..modeling.modeling_ibot_swin import IBotSwinForImageClassification, IBotSwinForPreTraining, IBotSwinModel
from .export_beit import native_beit, native_pooled_beit
from .export_swin import native_swin, sizes_of_swin
from .export_vit import native_vit, native_vit_mae


if TYPE_CHECKING:
    from transformers import ViTImageProcessor

    from ..modeling.image_processing_mim import Beitv2ImageProcessor, DBotImageProcessor, IBotImageProcessor


@torch.no_grad()
def export_native(
    model: IBotModel
    | IBotForPreTraining
    | IBotForImageClassification
    | IBotSwinModel
    | IBotSwinForPreTraining
    | IBotSwinForImageClassification
    | Beitv2Model
    | Beitv2ForPreTraining
    | Beitv2ForImageClassification
    | DBotModel
    | DBotForPreTraining
    | DBotForImageClassification,
    architecture: Literal["vit_mae"] | None = None,
) -> (
    ViTModel
    | ViTForImageClassification
    | ViTMAEModel
    | SwinModel
    | SwinForImageClassification
    | BeitModel
    | BeitForImageClassification
):
    """
    Copies a model into one of transformers that gives the same numbers, and loads without this package.

    - The encoders of iBOT and dBOT become a `ViTModel` with the same `last_hidden_state` `[B, 1+N, D]`. Its
      `pooler_output` `[B, D]` is the CLS token: `AutoModel` always builds a pooler, so this one is the identity. Layer
      scale is folded into the linear layer before it, fixed positions become a table, and stochastic depth, which a
      `ViTModel` does not know, stays behind. A classifier becomes a `ViTForImageClassification` with the same
      `logits`.
    - BEiT v2's encoder becomes a `BeitModel` with the same `last_hidden_state` and `pooler_output`, its classifier a
      `BeitForImageClassification`.
    - With mean pooling, which a ViT does not know, dBOT's encoder becomes a `BeitModel`, and a classifier of dBOT or
      iBOT a `BeitForImageClassification`.
    - iBOT's Swin Transformer becomes a `SwinModel`, whose `last_hidden_state` `[B, N, D]` holds the patches alone and
      whose `pooler_output` is their mean, its classifier a `SwinForImageClassification`. Between the first and the
      last norm its tokens are ours times √(1e-5 / `layer_norm_eps`), √10 in the released models: for intermediate
      features, or to go on training, take our model. `AutoBackbone` makes another network of it, with its own norms.
    - With `architecture="vit_mae"`, dBOT's encoder becomes a `ViTMAEModel`, which sees only the patches that its
      `noise` leaves, a share of 1 - `mask_ratio`: the same `last_hidden_state` for the same noise
      (`reference/dbot/SPEC.md` section 14).

    Mask token, decoder and pre-training heads stay behind. The numbers are the same at `config.image_size`;
    [`other_sizes`] tells what becomes of others. For another size, call `resize_position_tables` of a BEiT v2 or dBOT
    model before the export.

    Returns:
        The native model in eval mode with its own copy of the weights, in their type and on their device.

    Raises:
        TypeError: If the model is none of these.
        ValueError: If transformers cannot express it: an iBOT encoder that pools by the mean; a BEiT v2 model, or one
            that pools by the mean, for images that are not square; a Swin whose windows are larger than the map of a
            stage; or if dBOT's encoder alone can become what
            `architecture` says.
    """
    if architecture not in (None, "vit_mae"):
        raise ValueError(
            f"architecture must be 'vit_mae' or none, which takes the one that fits, got {architecture!r}"
        )
    if architecture == "vit_mae":
        if not isinstance(model, (DBotModel, DBotForPreTraining, DBotForImageClassification)):
            raise ValueError(f"only dBOT's encoder can become a ViTMAE, got {type(model).__name__}")
        native = native_vit_mae(model)
    elif isinstance(model, (IBotSwinModel, IBotSwinForPreTraining, IBotSwinForImageClassification)):
        native = native_swin(model)
    elif isinstance(model, (IBotModel, IBotForPreTraining)):
        if model.config.use_mean_pooling:
            raise ValueError(
                "use_mean_pooling=True has no counterpart for an iBOT encoder: a BeitModel keeps the CLS token where "
                "iBOT puts the mean patch; export a classifier, or the model without it"
            )
        native = native_vit(model)
    elif isinstance(model, (Beitv2Model, Beitv2ForPreTraining, Beitv2ForImageClassification)):
        native = native_beit(model)
    elif isinstance(model, (IBotForImageClassification, DBotModel, DBotForPreTraining, DBotForImageClassification)):
        native = native_pooled_beit(model) if model.config.use_mean_pooling else native_vit(model)
    else:
        raise TypeError(
            f"export_native takes an encoder or model of iBOT, BEiT v2 or dBOT, got {type(model).__name__}"
        )
    return native.to(dtype=model.dtype, device=model.device).eval()


def other_sizes(
    native: ViTModel
    | ViTForImageClassification
    | ViTMAEModel
    | SwinModel
    | SwinForImageClassification
    | BeitModel
    | BeitForImageClassification,
) -> str:
    """A sentence on the image sizes at which an exported model differs from what it was made of, and in what."""
    config = native.config
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    exact = f"The numbers are exact at {height} x {width} pixels"
    if config.model_type == "swin":
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
