"""iBOT with a Swin Transformer in `hf-mim pretrain`."""

from pathlib import Path

from PIL import Image
from transformers import SwinConfig

from ..data.views import MultiCropViews
from ..modeling.configuration_ibot_swin import IBotSwinConfig
from ..modeling.image_processing_pil_ibot import IBotImageProcessorPil
from ..modeling.modeling_ibot_swin import IBotSwinModel
from ..modeling.modeling_ibot_swin_pretraining import IBotSwinForPreTraining
from ..modeling.native_fields import SHARED_SWIN_FIELDS
from .ibot_method import IBotMethod
from .loading import load_for_pretraining, pretraining_config


class IBotSwinMethod(IBotMethod):
    """[`IBotMethod`] with square views, and masks whose cells are as large as the tokens of the last stage."""

    # Also where the encoder that is deployed is one of transformers.
    card = "ibot_swin"
    cell = "the masks' cells of"

    def read_config(self) -> IBotSwinConfig:
        return pretraining_config(self.model_args, IBotSwinConfig, SwinConfig, SHARED_SWIN_FIELDS)

    def build_views(self) -> MultiCropViews:
        for name, size in (
            ("global_crop_size", self.args.global_crop_size),
            ("local_crop_size", self.args.local_crop_size),
        ):
            if size is not None and len(set(size)) > 1:
                raise ValueError(f"{name} {size} must be square: Swin takes square images only")
        return super().build_views()

    def build_model(self) -> IBotSwinForPreTraining:
        return load_for_pretraining(self.model_args, self.config, IBotSwinForPreTraining)

    def draw(
        self, encoder: IBotSwinModel, processor: IBotImageProcessorPil, images: list[Image.Image], output: Path
    ) -> list[str]:
        """Nothing: there is no CLS token whose attention could be shown."""
        return []

    def facts(self) -> dict:
        return {"native": self.config.why_no_native_swin is None}
