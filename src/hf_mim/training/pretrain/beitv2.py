"""Runs of `hf-mim pretrain` with BEiT v2, and the base of all runs that mask blocks of patches."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

from transformers import AutoConfig, AutoImageProcessor, BeitConfig

from ...data.collators import Beitv2Collator
from ...data.masking import BlockMaskGenerator
from ...data.views import CropViews
from ...modeling.configuration_beitv2 import Beitv2Config
from ...modeling.configuration_common import SHARED_BEIT_FIELDS
from ...modeling.configuration_vqkd import VQKDConfig
from ...modeling.image_processing_pil_mim import Beitv2ImageProcessorPil
from ...modeling.modeling_beitv2_pretraining import Beitv2ForPreTraining
from ...modeling.modeling_vqkd import VQKDModel
from ...utils.loading import load_model
from ..beitv2_arguments import Beitv2TrainingArguments, BlockMaskingArguments
from ..beitv2_trainer import Beitv2Trainer
from ..teachers import source_name
from .model_loading import build_image_processor, load_for_pretraining, named, pretraining_config
from .run import PretrainRun


class BeitRun(PretrainRun):
    """Base of the runs with one crop per image, of which a frozen network sees all and a BEiT sees a part."""

    args: BlockMaskingArguments
    config: Beitv2Config
    # Fraction of the patches that the original masks, and whether all images have the same number of masked patches.
    masked: float
    exact_masks: bool

    @property
    def deploys_native(self) -> bool:
        return self.config.has_native_beit

    @abstractmethod
    def target_view(self) -> tuple[tuple[int, int], Literal["bicubic", "lanczos"]]:
        """Return size in pixels and resampling filter of the crop that the frozen network sees."""

    def build_views(self) -> CropViews:
        args, config = self.args, self.config
        rows, columns = config.grid_size
        target_size, interpolation = self.target_view()
        return CropViews(
            (rows * config.patch_size, columns * config.patch_size),
            (args.min_crop_scale, 1.0),
            args.color_jitter,
            target_size,
            interpolation,
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


class Beitv2Run(BeitRun):
    """BEiT v2: the student predicts the codes that a frozen tokenizer assigns to the masked patches."""

    arguments_class = Beitv2TrainingArguments
    trainer_class = Beitv2Trainer
    args: Beitv2TrainingArguments
    masked, exact_masks = 75 / 196, True

    def build_config(self) -> Beitv2Config:
        source = self.args.tokenizer_name_or_path
        if source is None:
            raise ValueError(
                "give --tokenizer_name_or_path, the tokenizer whose codes are predicted: the folder of a finished "
                "`hf-mim pretrain vqkd-...`, or a Hub id"
            )
        hub = {"cache_dir": self.model_args.cache_dir, "token": self.model_args.token}
        with named("tokenizer_name_or_path", source):
            tokenizer_config = AutoConfig.from_pretrained(source, **hub)
        if not isinstance(tokenizer_config, VQKDConfig):
            raise ValueError(
                f"{source} is a model of type {tokenizer_config.model_type!r}, not a tokenizer "
                f"({VQKDConfig.model_type!r})"
            )
        config = pretraining_config(
            self.model_args, Beitv2Config, BeitConfig, SHARED_BEIT_FIELDS, vocab_size=tokenizer_config.codebook_size
        )
        if config.num_channels != tokenizer_config.num_channels:
            raise ValueError(
                f"the model takes images of {config.num_channels} channels, the tokenizer {source} images of "
                f"{tokenizer_config.num_channels}: set num_channels to the same number in both"
            )
        if config.head_layers and config.early_layers > config.num_hidden_layers:
            raise ValueError(
                f"early_layers ({config.early_layers}) must be at most num_hidden_layers "
                f"({config.num_hidden_layers}): set it with --config_overrides early_layers=..."
            )
        self.tokenizer = load_model(source, VQKDModel, unused=(), **hub)
        self.tokenizer_processor = AutoImageProcessor.from_pretrained(source, **hub)
        return config

    def target_view(self) -> tuple[tuple[int, int], Literal["bicubic", "lanczos"]]:
        (rows, columns), patch_size = self.config.grid_size, self.tokenizer.config.patch_size
        return (rows * patch_size, columns * patch_size), self.args.second_interpolation

    def build_trainer(self, **common: Any) -> Beitv2Trainer:
        return Beitv2Trainer(
            args=self.args, tokenizer=self.tokenizer, tokenizer_processor=self.tokenizer_processor, **common
        )

    def card_facts(self) -> dict[str, Any]:
        assert self.args.tokenizer_name_or_path is not None
        config = self.tokenizer.config
        return {
            "tokenizer": source_name(self.args.tokenizer_name_or_path),
            "native": self.deploys_native,
            "codebook_size": config.codebook_size,
            "teacher": config.teacher,
            "teacher_license": config.teacher_license,
        }
