"""Runs of `hf-mim pretrain` with VQ-KD, the tokenizer of BEiT v2."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel

from ...data.collators import VQKDCollator
from ...data.views import CropViews
from ...modeling.configuration_vqkd import VQKDConfig
from ...modeling.image_processing_pil_mim import Beitv2ImageProcessorPil
from ...modeling.modeling_vqkd import VQKDModel
from ...utils.config_overrides import parse_overrides
from ..vqkd_arguments import VQKDTrainingArguments
from ..vqkd_trainer import VQKDTrainer
from .model_loading import build_image_processor, load_for_pretraining, load_named_teacher, pretraining_config
from .run import PretrainRun, scale_range


class VQKDRun(PretrainRun):
    """VQ-KD: one crop per image, and a codebook from which the features of a frozen teacher are predicted."""

    arguments_class = VQKDTrainingArguments
    trainer_class = VQKDTrainer
    args: VQKDTrainingArguments
    config: VQKDConfig
    num_example_images = 64

    def build_config(self) -> VQKDConfig:
        args, source = self.args, self.model_args.model_name_or_path
        if args.teacher_model_name_or_path is None:
            raise ValueError("give --teacher_model_name_or_path, the vision model that the tokenizer learns from")
        config = pretraining_config(self.model_args, VQKDConfig)
        if args.eval_on_start and source is None and config.kmeans_init:
            raise ValueError("eval_on_start: a new tokenizer has no codebook before its first step; leave it out")
        self.teacher = load_named_teacher(args, self.model_args, config)
        overrides = parse_overrides(self.model_args.config_overrides)
        if source is None and "target_dim" not in overrides:
            config.target_dim = self.teacher.hidden_size
        elif config.target_dim != self.teacher.hidden_size:
            raise ValueError(
                f"{source or 'target_dim'} predicts features of {config.target_dim} numbers, but features of the "
                f"teacher {self.teacher.name} have {self.teacher.hidden_size}"
            )
        # The overrides win: many cards do not state the license.
        config.teacher = overrides.get("teacher", self.teacher.name)
        config.teacher_license = overrides.get("teacher_license", self.teacher.license)
        return config

    def build_views(self) -> CropViews:
        height, width = (side * self.config.patch_size for side in self.config.grid_size)
        return CropViews((height, width), scale_range("crop_scale", self.args.crop_scale), self.args.color_jitter)

    def build_processor(self) -> Beitv2ImageProcessorPil:
        half = (0.5, 0.5, 0.5)
        return build_image_processor(
            Beitv2ImageProcessorPil, self.config, self.data_args, self.model_args, mean=half, std=half
        )

    def build_collator(self, make_samples: Callable | None) -> VQKDCollator:
        return VQKDCollator(make_samples)

    def build_model(self) -> VQKDModel:
        return load_for_pretraining(self.model_args, self.config, VQKDModel)

    def build_trainer(self, **common: Any) -> VQKDTrainer:
        return VQKDTrainer(args=self.args, teacher=self.teacher, **common)

    @property
    def deploys_native(self) -> bool:
        return False

    def save_pictures(
        self, encoder: PreTrainedModel, processor: BaseImageProcessor, images: list[Image.Image], output: Path
    ) -> list[str]:
        # Imported late because importing matplotlib would delay the first step.
        from ...analysis.codes import encode_images, plot_codes, plot_usage

        assert isinstance(encoder, VQKDModel)
        dataset = datasets.Dataset.from_dict(
            {"image": images}, features=datasets.Features({"image": datasets.Image(decode=False)})
        )
        codes = encode_images(encoder, dataset, processor, self.args.per_device_eval_batch_size, progress=False)
        plot_codes(encoder, dataset, processor, codes, output / "codes.png")
        plot_usage(np.bincount(codes.ravel(), minlength=self.config.codebook_size), output / "usage.png")
        return ["codes.png", "usage.png"]

    def summary_lines(self, facts: dict[str, Any], output_dir: str) -> list[str]:
        lines = []
        if "eval_codebook_usage" in facts:
            lines = [
                f"On {facts['eval_images']} held-out images",
                f"  codes in use          {facts['eval_codebook_usage']:6.1%} of {facts['codebook_size']}",
                f"  perplexity            {facts['eval_perplexity']:6.1f}",
                f"  loss of the features  {facts['eval_loss_feature']:6.3f} (1 - cosine, {facts['teacher']})",
                "",
            ]
        pictures: list[str] = facts["pictures"]
        *files, last = ["Tokenizer", "card", *pictures]
        return [
            *lines,
            f"{', '.join(files)} and {last} are in {output_dir}. Train an encoder on its codes with",
            f"  hf-mim pretrain RECIPE --tokenizer_name_or_path {output_dir} ...",
            "where RECIPE is beitv2-vitb16 or another BEiT v2 recipe.",
        ]

    def card_facts(self) -> dict[str, Any]:
        config = self.config
        return {
            "native": self.deploys_native,
            "codebook_size": config.codebook_size,
            "teacher": config.teacher,
            "teacher_license": config.teacher_license,
            "teacher_feature": self.teacher.feature,
        }
