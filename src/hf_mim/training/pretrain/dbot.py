"""dBOT in `hf-mim pretrain`."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from transformers import BeitConfig

from ...data.collators import DBotCollator
from ...data.views import CropViews
from ...modeling.configuration_beitv2 import Beitv2Config
from ...modeling.configuration_common import SHARED_BEIT_FIELDS
from ...modeling.configuration_dbot import DBotConfig
from ...modeling.image_processing_pil_mim import Beitv2ImageProcessorPil, DBotImageProcessorPil
from ...modeling.modeling_beitv2 import Beitv2Model
from ...modeling.modeling_dbot_pretraining import DBotForPreTraining
from ..dbot_arguments import DBotTrainingArguments
from ..dbot_symmetric_arguments import DBotSymmetricTrainingArguments
from ..dbot_symmetric_trainer import DBotSymmetricTrainer
from ..dbot_trainer import DBotTrainer
from .beitv2 import BeitMethod
from .model_loading import build_image_processor, load_for_pretraining, load_named_teacher, pretraining_config
from .run import Method


class DBotMethod(Method):
    """dBOT: one crop per image, of which the student sees a quarter and a frozen teacher all; in stages."""

    arguments_class = DBotTrainingArguments
    trainer_class = DBotTrainer

    def check_epochs(self, epochs: int):
        args = self.args
        for number, length in enumerate(args.stage_epochs or [epochs], start=1):
            if args.lr_scheduler_type == "cosine" and not args.warmup_steps and args.warmup_epochs >= length:
                raise ValueError(
                    f"the learning rate's warm-up (warmup_epochs {args.warmup_epochs:g}) is as long as stage {number} "
                    f"of {length:g} epochs, or longer"
                )

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

    def build_trainer(self, **common) -> DBotTrainer:
        return DBotTrainer(args=self.args, teacher=self.teacher, **common)

    def drawn_masks(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        noise = batch["noise"]
        kept = int(noise.shape[1] * (1 - self.config.mask_ratio))
        return noise.argsort(dim=1, stable=True).argsort(dim=1) >= kept

    def facts(self) -> dict:
        return {
            "stages": self.args.num_stages,
            "teacher": None if self.teacher is None else self.teacher.name,
            "teacher_license": None if self.teacher is None else self.teacher.license,
        }


class DBotSymmetricMethod(BeitMethod):
    """dBOT's symmetric variant: one crop per image, which a frozen teacher sees whole and the student masked."""

    arguments_class = DBotSymmetricTrainingArguments
    trainer_class = DBotSymmetricTrainer
    masked, exact_masks = 78 / 196, False
    card = "dbot_symmetric"

    def build_config(self) -> Beitv2Config:
        args, source = self.args, self.model_args.model_name_or_path
        if args.teacher_model_name_or_path is None:
            raise ValueError("say with --teacher_model_name_or_path from which vision model the student learns")
        config = pretraining_config(
            self.model_args, Beitv2Config, BeitConfig, SHARED_BEIT_FIELDS, head_layers=0, regression_loss="negcosine"
        )
        if config.regression_loss is None:
            raise ValueError(f"{source} predicts codes, not features: continue from the encoder of its run instead")
        self.teacher = load_named_teacher(args, self.model_args, config, resize=args.teacher_resize)
        width = self.teacher.hidden_size
        if not config.name_or_path:
            # The head is new.
            config.target_dim = width
        elif config.target_dim != width:
            raise ValueError(
                f"{source} predicts features of {config.target_dim} numbers, those of the teacher {self.teacher.name} "
                f"have {width}: continue from the encoder of its run instead"
            )
        return config

    def target_view(self):
        return self.teacher.input_size, "bicubic"

    def build_trainer(self, **common) -> DBotSymmetricTrainer:
        return DBotSymmetricTrainer(args=self.args, teacher=self.teacher, **common)

    def draw(
        self, encoder: Beitv2Model, processor: Beitv2ImageProcessorPil, images: list[Image.Image], output: Path
    ) -> list[str]:
        # Nothing is learned of where the last CLS token looks: it has no target.
        return []

    def facts(self) -> dict:
        return {
            "teacher": self.teacher.name,
            "teacher_license": self.teacher.license,
            "teacher_feature": self.teacher.feature,
            "teacher_width": self.teacher.hidden_size,
            "native": self.config.has_native_beit,
        }
