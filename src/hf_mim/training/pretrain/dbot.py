"""Runs of `hf-mim pretrain` with dBOT and its symmetric variant."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import BaseImageProcessor, BeitConfig, PreTrainedModel

from ...data.collators import DBotCollator
from ...data.views import CropViews
from ...modeling.configuration_beitv2 import Beitv2Config
from ...modeling.configuration_common import SHARED_BEIT_FIELDS
from ...modeling.configuration_dbot import DBotConfig
from ...modeling.image_processing_pil_mim import DBotImageProcessorPil
from ...modeling.modeling_dbot_pretraining import DBotForPreTraining
from ..dbot_arguments import DBotTrainingArguments
from ..dbot_symmetric_arguments import DBotSymmetricTrainingArguments
from ..dbot_symmetric_trainer import DBotSymmetricTrainer
from ..dbot_trainer import DBotTrainer
from ..teachers import FeatureTeacher
from .beitv2 import BeitRun
from .model_loading import build_image_processor, load_for_pretraining, load_named_teacher, pretraining_config
from .run import PretrainRun


class DBotRun(PretrainRun):
    """dBOT: one crop per image, of which the student sees a quarter and a frozen teacher sees all; in stages."""

    arguments_class = DBotTrainingArguments
    trainer_class = DBotTrainer
    args: DBotTrainingArguments
    config: DBotConfig
    teacher: FeatureTeacher | None

    def build_config(self) -> DBotConfig:
        args = self.args
        config = pretraining_config(self.model_args, DBotConfig)
        if config.use_mean_pooling:
            raise ValueError("use_mean_pooling is for fine-tuning: dBOT is trained with the CLS token")
        self.teacher = None
        if args.teacher_model_name_or_path is not None:
            self.teacher = load_named_teacher(
                args, self.model_args, config, resize=args.teacher_resize, cls_token=True
            )
            if self.model_args.model_name_or_path is None:
                config.target_dim = self.teacher.hidden_size
        return config

    def build_views(self) -> CropViews:
        height, width = (side * self.config.patch_size for side in self.config.grid_size)
        return CropViews((height, width), (self.args.min_crop_scale, 1.0))

    def build_processor(self) -> DBotImageProcessorPil:
        return build_image_processor(DBotImageProcessorPil, self.config, self.data_args, self.model_args)

    def build_collator(self, make_samples: Callable | None) -> DBotCollator:
        rows, columns = self.config.grid_size
        return DBotCollator(self.args.seed, rows * columns, make_samples)

    def build_model(self) -> DBotForPreTraining:
        return load_for_pretraining(self.model_args, self.config, DBotForPreTraining)

    def build_trainer(self, **common: Any) -> DBotTrainer:
        return DBotTrainer(args=self.args, teacher=self.teacher, **common)

    def drawn_masks(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        noise = batch["noise"]
        kept = int(noise.shape[1] * (1 - self.config.mask_ratio))
        return noise.argsort(dim=1, stable=True).argsort(dim=1) >= kept

    def card_facts(self) -> dict[str, Any]:
        return {
            "stages": self.args.num_stages,
            "teacher": None if self.teacher is None else self.teacher.name,
            "teacher_license": None if self.teacher is None else self.teacher.license,
        }


class DBotSymmetricRun(BeitRun):
    """dBOT's symmetric variant: a BEiT predicts features of the masked patches, which a frozen teacher sees."""

    arguments_class = DBotSymmetricTrainingArguments
    trainer_class = DBotSymmetricTrainer
    args: DBotSymmetricTrainingArguments
    teacher: FeatureTeacher
    masked, exact_masks = 78 / 196, False
    card = "dbot_symmetric"

    def build_config(self) -> Beitv2Config:
        args, source = self.args, self.model_args.model_name_or_path
        if args.teacher_model_name_or_path is None:
            raise ValueError("give --teacher_model_name_or_path, the vision model that the student learns from")
        config = pretraining_config(
            self.model_args, Beitv2Config, BeitConfig, SHARED_BEIT_FIELDS, head_layers=0, regression_loss="negcosine"
        )
        if config.regression_loss is None:
            raise ValueError(f"{source} predicts codes, not features: continue from the encoder of its run instead")
        self.teacher = load_named_teacher(args, self.model_args, config, resize=args.teacher_resize)
        width = self.teacher.hidden_size
        if not config.name_or_path:
            # A new head.
            config.target_dim = width
        elif config.target_dim != width:
            raise ValueError(
                f"{source} predicts features of {config.target_dim} numbers, but features of the teacher "
                f"{self.teacher.name} have {width}: continue from the encoder of its run instead"
            )
        return config

    def target_view(self) -> tuple[tuple[int, int], Literal["bicubic", "lanczos"]]:
        return self.teacher.input_size, "bicubic"

    def build_trainer(self, **common: Any) -> DBotSymmetricTrainer:
        return DBotSymmetricTrainer(args=self.args, teacher=self.teacher, **common)

    def save_pictures(
        self, encoder: PreTrainedModel, processor: BaseImageProcessor, images: list[Image.Image], output: Path
    ) -> list[str]:
        """Draw nothing: the CLS token has no target, so its attention in the last layer is not trained."""
        return []

    def card_facts(self) -> dict[str, Any]:
        return {
            "teacher": self.teacher.name,
            "teacher_license": self.teacher.license,
            "teacher_feature": self.teacher.feature,
            "teacher_width": self.teacher.hidden_size,
            "native": self.deploys_native,
        }
