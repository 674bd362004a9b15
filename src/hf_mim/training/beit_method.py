"""What BEiT v2 and the symmetric variant of dBOT have in common in `hf-mim pretrain`."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

from ..data.collator_beitv2 import Beitv2Collator
from ..data.crop_views import CropViews
from ..data.masking import BlockMaskGenerator
from ..modeling.image_processing_pil_beitv2 import Beitv2ImageProcessorPil
from ..modeling.modeling_beitv2_pretraining import Beitv2ForPreTraining
from .block_masking_arguments import BlockMaskingArguments
from .loading import load_for_pretraining
from .method import Method
from .processing import build_image_processor


class BeitMethod(Method):
    """One crop per image, which a frozen network sees whole and a BEiT with blocks of masked patches."""

    args: BlockMaskingArguments
    # Share of the patches that the original masks, and whether it is the same for all images.
    masked: float
    exact_masks: bool

    @abstractmethod
    def target_view(self) -> tuple[tuple[int, int], Literal["bicubic", "lanczos"]]:
        """Size in pixels and filter of the crop that the frozen network sees."""

    def build_views(self) -> CropViews:
        args, config = self.args, self.config
        rows, columns = config.grid_size
        return CropViews(
            (rows * config.patch_size, columns * config.patch_size),
            (args.min_crop_scale, 1.0),
            args.color_jitter,
            *self.target_view(),
        )

    def build_processor(self) -> Beitv2ImageProcessorPil:
        return build_image_processor(Beitv2ImageProcessorPil, self.config, self.data_args, self.model_args)

    def build_collator(self, make_samples: Callable | None) -> Beitv2Collator:
        args, grid = self.args, self.config.grid_size
        number = args.num_masking_patches
        if number is None:
            number = max(1, round(self.masked * grid[0] * grid[1]))
        smallest, largest = args.min_mask_patches_per_block, args.max_mask_patches_per_block
        masks = BlockMaskGenerator(grid, number, smallest, largest, self.exact_masks)
        return Beitv2Collator(masks, args.seed, make_samples)

    def build_model(self) -> Beitv2ForPreTraining:
        return load_for_pretraining(self.model_args, self.config, Beitv2ForPreTraining)
