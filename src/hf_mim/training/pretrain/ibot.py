"""iBOT in `hf-mim pretrain`."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image
from transformers import SwinConfig, ViTConfig

from ...data.collators import IBotCollator
from ...data.masking import MaskGenerator
from ...data.views import MultiCropViews
from ...modeling.configuration_common import SHARED_FIELDS, SHARED_SWIN_FIELDS
from ...modeling.configuration_ibot import IBotConfig
from ...modeling.configuration_ibot_swin import IBotSwinConfig
from ...modeling.image_processing_pil_mim import IBotImageProcessorPil
from ...modeling.modeling_ibot_pretraining import IBotForPreTraining
from ...modeling.modeling_ibot_swin import IBotSwinForPreTraining, IBotSwinModel
from ..ibot_arguments import IBotTrainingArguments
from ..ibot_trainer import IBotTrainer
from .model_loading import build_image_processor, load_for_pretraining, pretraining_config
from .run import Method, pixel_size


class IBotMethod(Method):
    """iBOT: multi-crop views, one mask per global view, a moving average of the student as its teacher."""

    arguments_class = IBotTrainingArguments
    trainer_class = IBotTrainer
    # What the sides of global views are multiples of.
    cell = "the patch size"

    def check_epochs(self, epochs: int):
        args = self.args
        if args.warmup_teacher_temp_epochs + args.pred_start_epoch > epochs:
            raise ValueError(
                f"the teacher temperatures' warm-up (warmup_teacher_temp_epochs {args.warmup_teacher_temp_epochs}, "
                f"from pred_start_epoch {args.pred_start_epoch} on) is longer than the run of "
                f"{args.num_train_epochs:g} epochs"
            )
        super().check_epochs(epochs)

    def build_config(self) -> IBotConfig:
        if self.data_args.streaming and self.args.pred_start_epoch:
            raise ValueError("a stream has no epochs to count to: pred_start_epoch must be 0 with --streaming")
        return self.read_config()

    def read_config(self) -> IBotConfig:
        """The configuration of the model to train, from the options."""
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
            global_crops_scale=tuple(args.global_crops_scale),
            local_crops_number=args.local_crops_number,
            local_crop_size=local_size,
            local_crops_scale=tuple(args.local_crops_scale),
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

    def build_trainer(self, **common) -> IBotTrainer:
        return IBotTrainer(args=self.args, **common)

    def global_size(self) -> tuple[int, int]:
        """Height and width of the global views in pixels."""
        image_size = [side * self.config.patch_size for side in self.config.grid_size]
        size, stride = self.args.global_crop_size or image_size, self.config.token_stride
        return pixel_size("global_crop_size", size, stride, self.cell)


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
