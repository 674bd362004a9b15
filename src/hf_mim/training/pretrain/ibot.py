"""Runs of `hf-mim pretrain` with iBOT, for Vision Transformers and Swin Transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel, SwinConfig, ViTConfig

from ...data.collators import IBotCollator
from ...data.masking import MaskGenerator
from ...data.views import MultiCropViews
from ...modeling.configuration_common import SHARED_FIELDS, SHARED_SWIN_FIELDS
from ...modeling.configuration_ibot import IBotConfig
from ...modeling.configuration_ibot_swin import IBotSwinConfig
from ...modeling.image_processing_pil_mim import IBotImageProcessorPil
from ...modeling.modeling_ibot_pretraining import IBotForPreTraining
from ...modeling.modeling_ibot_swin import IBotSwinForPreTraining
from ..ibot_arguments import IBotTrainingArguments
from ..ibot_trainer import IBotTrainer
from .model_loading import build_image_processor, load_for_pretraining, pretraining_config
from .run import PretrainRun, pixel_size, scale_range


class IBotRun(PretrainRun):
    """iBOT: multi-crop views, one mask per global view, and a moving average of the student as the teacher."""

    arguments_class = IBotTrainingArguments
    trainer_class = IBotTrainer
    args: IBotTrainingArguments
    config: IBotConfig | IBotSwinConfig
    # Error messages: the unit that the sides of global views are multiples of.
    cell = "the patch size"

    def build_config(self) -> IBotConfig | IBotSwinConfig:
        if self.data_args.streaming and self.args.pred_start_epoch:
            raise ValueError("a stream has no epochs to count to: pred_start_epoch must be 0 with --streaming")
        return self.read_config()

    def read_config(self) -> IBotConfig | IBotSwinConfig:
        """Build the configuration of the model to train from the options."""
        config = pretraining_config(self.model_args, IBotConfig, ViTConfig, SHARED_FIELDS)
        if config.use_mean_pooling:
            raise ValueError("use_mean_pooling is for evaluation: iBOT is trained with the CLS token")
        return config

    def build_views(self) -> MultiCropViews:
        args, patch_size = self.args, self.config.patch_size
        local_size = (patch_size, patch_size)
        if args.local_crops_number:
            local_size = pixel_size("local_crop_size", args.local_crop_size, patch_size)
        return MultiCropViews(
            global_crops_number=args.global_crops_number,
            global_crop_size=self.global_size(),
            global_crops_scale=scale_range("global_crops_scale", args.global_crops_scale),
            local_crops_number=args.local_crops_number,
            local_crop_size=local_size,
            local_crops_scale=scale_range("local_crops_scale", args.local_crops_scale),
            color=args.color_augmentation,
            blur=args.blur_augmentation,
        )

    def build_processor(self) -> IBotImageProcessorPil:
        return build_image_processor(IBotImageProcessorPil, self.config, self.data_args, self.model_args)

    def build_collator(self, make_samples: Callable | None) -> IBotCollator:
        args, size, stride = self.args, self.global_size(), self.config.token_stride
        grid = (size[0] // stride, size[1] // stride)
        if args.pred_shape == "block" and min(grid) < 2 and max(args.pred_ratio) > 0:
            raise ValueError(
                f"global views of {grid[0]} x {grid[1]} patches have no room for blocks: enlarge global_crop_size "
                f"{list(size)}, or set pred_shape to 'rand'"
            )
        masks = MaskGenerator(grid, args.pred_ratio, args.pred_ratio_var, args.pred_shape, args.pred_start_epoch)
        return IBotCollator(masks, args.seed, make_samples)

    def build_model(self) -> IBotForPreTraining:
        return load_for_pretraining(self.model_args, self.config, IBotForPreTraining)

    def build_trainer(self, **common: Any) -> IBotTrainer:
        return IBotTrainer(args=self.args, **common)

    def global_size(self) -> tuple[int, int]:
        """Return height and width of the global views in pixels."""
        image_size = [side * self.config.patch_size for side in self.config.grid_size]
        size, stride = self.args.global_crop_size or image_size, self.config.token_stride
        return pixel_size("global_crop_size", size, stride, self.cell)


class IBotSwinRun(IBotRun):
    """[`IBotRun`] with square views, and masks made of cells as large as the tokens of the last stage."""

    # The template does not follow from the encoder, which may be a plain Swin Transformer.
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

    @property
    def deploys_native(self) -> bool:
        assert isinstance(self.config, IBotSwinConfig)
        return self.config.why_no_native_swin is None

    def save_pictures(
        self, encoder: PreTrainedModel, processor: BaseImageProcessor, images: list[Image.Image], output: Path
    ) -> list[str]:
        """Draw nothing: there is no CLS token whose attention could be shown."""
        return []

    def card_facts(self) -> dict[str, Any]:
        return {"native": self.deploys_native}
