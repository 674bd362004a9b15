"""The symmetric variant of dBOT in `hf-mim pretrain`."""

from pathlib import Path

from PIL import Image
from transformers import BeitConfig

from ..modeling.configuration_beitv2 import Beitv2Config
from ..modeling.image_processing_pil_beitv2 import Beitv2ImageProcessorPil
from ..modeling.modeling_beitv2 import Beitv2Model
from ..modeling.native_fields import SHARED_BEIT_FIELDS
from .beit_method import BeitMethod
from .dbot_symmetric_arguments import DBotSymmetricTrainingArguments
from .dbot_symmetric_trainer import DBotSymmetricTrainer
from .loading import load_named_teacher, pretraining_config


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
            config.vocab_size = width
        elif config.vocab_size != width:
            raise ValueError(
                f"{source} predicts features of {config.vocab_size} numbers, those of the teacher {self.teacher.name} "
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
