"""BEiT v2: the student predicts the codes of a frozen VQ-KD tokenizer for masked patches (paper section 3.2)."""

from typing import Any

import torch
from torch import nn

from ..data.color import normalize_views
from ..modeling.modeling_beitv2 import Beitv2Model
from ..modeling.modeling_beitv2_pretraining import Beitv2ForPreTraining
from ..modeling.modeling_vqkd import VQKDModel
from ..modeling.quantizer_vqkd import code_statistics
from .beitv2_arguments import Beitv2TrainingArguments
from .frozen_target import FrozenTargetTrainer
from .optimization import BEITV2_WITHOUT_DECAY, decayed_parameter_names
from .teachers import normalized_images, plain_images, source_name


class Beitv2Trainer(FrozenTargetTrainer):
    """
    [`MIMTrainer`] for [`Beitv2ForPreTraining`] (`engine_for_pretraining.py`). The tokenizer sees the crop unmasked, in
    its own rendering if the batch has one (`target_pixel_values`). Its codes are the labels of the masked patches.

    The logs show the accuracies of both heads and two figures of the labels since the last log: `majority_code`, the
    share of the most frequent code (the accuracy of always guessing it), and `codes_used`, the share of the vocabulary
    that occurred.

    Args:
        model (`Beitv2ForPreTraining`): Student.
        args (`Beitv2TrainingArguments`): All options.
        tokenizer (`VQKDModel`): Gives the codes, as many as the student's `vocab_size`.
        tokenizer_processor (`BaseImageProcessor`): Image processor of the tokenizer. Its mean and standard deviation
            normalize the tokenizer's view.
        **kwargs: As for [`MIMTrainer`].

    Raises:
        ValueError: If student and tokenizer do not fit together.
    """

    model: Beitv2ForPreTraining
    args: Beitv2TrainingArguments
    teacher: VQKDModel

    def __init__(
        self,
        model: Beitv2ForPreTraining,
        args: Beitv2TrainingArguments,
        tokenizer: VQKDModel,
        tokenizer_processor: Any,
        **kwargs,
    ):
        if model.config.vocab_size != tokenizer.config.codebook_size:
            raise ValueError(
                f"the model predicts one of {model.config.vocab_size} codes, the tokenizer has "
                f"{tokenizer.config.codebook_size}: set vocab_size to its codebook_size"
            )
        if not tokenizer.quantizer.initialized:
            raise ValueError("the tokenizer has no codebook: it was never trained")
        name = source_name(args.tokenizer_name_or_path or tokenizer.name_or_path or "tokenizer")
        super().__init__(model=model, args=args, target=tokenizer, target_name=name, **kwargs)
        self.tokenizer_processor = tokenizer_processor
        # How often each code was a label since the last log.
        self._counts = torch.zeros(model.config.vocab_size, dtype=torch.int64, device=args.device)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return decayed_parameter_names(model, BEITV2_WITHOUT_DECAY)

    def normalize_inputs(self, inputs: dict[str, Any]):
        views, has_own = inputs.get("target_pixel_values", inputs["pixel_values"]), "target_pixel_values" in inputs
        super().normalize_inputs(inputs)
        processor, own = self.processing_class, self.tokenizer_processor
        if views.dtype == torch.uint8:
            views = normalize_views(views, own.image_mean, own.image_std)
        elif not has_own:
            # The tokenizer gets the student's view.
            if processor is None:
                raise ValueError(
                    "normalized pixel_values need processing_class, the image processor, or target_pixel_values, "
                    "normalized for the tokenizer"
                )
            images = plain_images(views, processor.image_mean, processor.image_std)
            views = normalized_images(images, own.image_mean, own.image_std)
        inputs["target_pixel_values"] = views

    def compute_targets(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        views = inputs.pop("target_pixel_values")
        patch_size, own_patch_size = self.model.config.patch_size, self.teacher.config.patch_size
        rows, columns = (side // patch_size for side in inputs["pixel_values"].shape[-2:])
        own_rows, own_columns = (side // own_patch_size for side in views.shape[-2:])
        if (rows, columns) != (own_rows, own_columns):
            raise ValueError(
                f"the model sees {rows}x{columns} patches of {patch_size} pixels, the tokenizer "
                f"{own_rows}x{own_columns} of {own_patch_size}: give it a view of "
                f"{[rows * own_patch_size, columns * own_patch_size]} pixels"
            )
        codes = self.teacher.encode(views)
        if inputs.get("mask_indices") is None:
            inputs["mask_indices"] = inputs["bool_masked_pos"].flatten().nonzero().squeeze(1)
        labels = codes.flatten()[inputs["mask_indices"]]
        self._counts.index_add_(0, labels, torch.ones_like(labels))
        return {"labels": codes}

    def record_batch(self, targets: dict[str, torch.Tensor], outputs):
        super().record_batch(targets, outputs)
        for name, value in outputs.items():
            if name.startswith("accuracy_"):
                self.step_logs.add(name, value)

    def collect_logs(self) -> dict[str, float]:
        statistics = code_statistics(self.accelerator.reduce(self._counts, "sum"))
        self._counts = torch.zeros_like(self._counts)
        return super().collect_logs() | {
            "majority_code": statistics["majority_code"],
            "codes_used": statistics["codebook_usage"],
        }

    def deployable_encoder(self) -> Beitv2Model:
        student = self.whole_student()
        assert isinstance(student, Beitv2ForPreTraining)
        return student.beitv2
