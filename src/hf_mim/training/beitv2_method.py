"""BEiT v2 in `hf-mim pretrain`."""

from collections.abc import Callable
from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor, BeitConfig

from ..data.collator_beitv2 import Beitv2Collator
from ..data.crop_views import CropViews
from ..data.masking import BlockMaskGenerator
from ..hub.export import SHARED_BEIT_FIELDS, export_native, has_native_beit, native_image_processor
from ..modeling.configuration_beitv2 import Beitv2Config
from ..modeling.configuration_vqkd import VQKDConfig
from ..modeling.image_processing_pil_beitv2 import Beitv2ImageProcessorPil
from ..modeling.modeling_beitv2 import Beitv2Model
from ..modeling.modeling_beitv2_pretraining import Beitv2ForPreTraining
from ..modeling.modeling_vqkd import VQKDModel
from .beitv2_arguments import Beitv2TrainingArguments
from .beitv2_trainer import Beitv2Trainer
from .loading import load_for_pretraining, pretraining_config
from .method import Method
from .processing import build_image_processor
from .teachers import source_name


# Share of the patches that the original masks.
MASKED = 75 / 196


class Beitv2Method(Method):
    """BEiT v2: one crop per image, which a frozen tokenizer sees whole and the student masked."""

    arguments_class = Beitv2TrainingArguments
    trainer_class = Beitv2Trainer

    def build_config(self) -> Beitv2Config:
        source = self.args.tokenizer_name_or_path
        if source is None:
            raise ValueError(
                "say with --tokenizer_name_or_path which tokenizer gives the codes to predict: the folder of a "
                "finished `hf-mim pretrain vqkd-...`, or a Hub id"
            )
        hub = {"cache_dir": self.model_args.cache_dir, "token": self.model_args.token}
        tokenizer_config = AutoConfig.from_pretrained(source, **hub)
        if not isinstance(tokenizer_config, VQKDConfig):
            raise ValueError(f"{source} is a model of type {tokenizer_config.model_type!r}, not a tokenizer ('vqkd')")
        config = pretraining_config(
            self.model_args, Beitv2Config, BeitConfig, SHARED_BEIT_FIELDS, vocab_size=tokenizer_config.codebook_size
        )
        self.tokenizer = VQKDModel.from_pretrained(source, **hub)
        self.tokenizer_processor = AutoImageProcessor.from_pretrained(source, **hub)
        return config

    def build_views(self) -> CropViews:
        args, config = self.args, self.config
        rows, columns = config.grid_size
        patch_size = self.tokenizer.config.patch_size
        return CropViews(
            (rows * config.patch_size, columns * config.patch_size),
            (args.min_crop_scale, 1.0),
            args.color_jitter,
            second_size=(rows * patch_size, columns * patch_size),
            second_interpolation=args.second_interpolation,
        )

    def build_processor(self) -> Beitv2ImageProcessorPil:
        return build_image_processor(Beitv2ImageProcessorPil, self.config, self.data_args, self.model_args)

    def build_collator(self, make_samples: Callable | None) -> Beitv2Collator:
        args, grid = self.args, self.config.grid_size
        number = args.num_masking_patches
        if number is None:
            number = max(1, round(MASKED * grid[0] * grid[1]))
        masks = BlockMaskGenerator(grid, number, args.min_mask_patches_per_block, args.max_mask_patches_per_block)
        return Beitv2Collator(masks, args.seed, make_samples)

    def build_model(self) -> Beitv2ForPreTraining:
        return load_for_pretraining(self.model_args, self.config, Beitv2ForPreTraining)

    def build_trainer(self, **common) -> Beitv2Trainer:
        return Beitv2Trainer(
            args=self.args, tokenizer=self.tokenizer, tokenizer_processor=self.tokenizer_processor, **common
        )

    def save_deployable(self, encoder: Beitv2Model, processor: Beitv2ImageProcessorPil, folder: Path):
        if has_native_beit(self.config):
            export_native(encoder).save_pretrained(folder)
            native_image_processor(processor).save_pretrained(folder)
        else:
            encoder.save_pretrained(folder)
            processor.save_pretrained(folder)

    def facts(self) -> dict:
        config = self.tokenizer.config
        return {
            "tokenizer": source_name(self.args.tokenizer_name_or_path),
            "native": has_native_beit(self.config),
            "codebook_size": config.codebook_size,
            "teacher": config.teacher,
            "teacher_license": config.teacher_license,
        }
