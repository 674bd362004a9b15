"""BEiT v2: the codes of a frozen VQ-KD tokenizer are predicted for masked patches (paper section 3.2)."""

import torch
from transformers import BaseImageProcessor

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
    its own rendering if the batch has one (`target_pixel_values`); its codes are the labels of the masked patches.

    The logs show the accuracies of both heads and, of the labels since the last log, `majority_code`, the share of the
    most frequent code, which is the accuracy of guessing, and `codes_used`, the share of the vocabulary among them.

    Args: as for [`MIMTrainer`], with `args` a [`Beitv2TrainingArguments`], and
        tokenizer ([`VQKDModel`]): Gives the codes; as many as the student's `vocab_size`.
        tokenizer_processor: The tokenizer's image processor, whose mean and standard deviation normalise its view.

    Raises:
        ValueError: If student and tokenizer do not fit together.
    """

    def __init__(
        self,
        model: Beitv2ForPreTraining,
        args: Beitv2TrainingArguments,
        tokenizer: VQKDModel,
        tokenizer_processor: BaseImageProcessor,
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

    def get_decay_parameter_names(self, model: Beitv2ForPreTraining) -> list[str]:
        return decayed_parameter_names(model, BEITV2_WITHOUT_DECAY)

    def normalize_inputs(self, inputs: dict[str, torch.Tensor]):
        views, has_own = inputs.get("target_pixel_values", inputs["pixel_values"]), "target_pixel_values" in inputs
        super().normalize_inputs(inputs)
        processor, own = self.processing_class, self.tokenizer_processor
        if views.dtype == torch.uint8:
            views = normalize_views(views, own.image_mean, own.image_std)
        elif not has_own:
            # They are as the student sees them.
            if processor is None:
                raise ValueError(
                    "normalised pixel_values need processing_class, the image processor, or target_pixel_values, "
                    "normalised for the tokenizer"
                )
            images = plain_images(views, processor.image_mean, processor.image_std)
            views = normalized_images(images, own.image_mean, own.image_std)
        inputs["target_pixel_values"] = views

    def compute_targets(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        views = inputs.pop("target_pixel_values")
        grids = [
            tuple(side // config.patch_size for side in pixels.shape[-2:])
            for pixels, config in ((inputs["pixel_values"], self.model.config), (views, self.teacher.config))
        ]
        if grids[0] != grids[1]:
            raise ValueError(
                f"the model sees {grids[0][0]}x{grids[0][1]} patches of {self.model.config.patch_size} pixels, the "
                f"tokenizer {grids[1][0]}x{grids[1][1]} of {self.teacher.config.patch_size}: give it a view of "
                f"{[side * self.teacher.config.patch_size for side in grids[0]]} pixels"
            )
        codes = self.teacher.encode(views)
        if inputs.get("mask_indices") is None:
            inputs["mask_indices"] = inputs["bool_masked_pos"].flatten().nonzero().squeeze(1)
        labels = codes.flatten()[inputs["mask_indices"]]
        self._counts.index_add_(0, labels, torch.ones_like(labels))
        return {"labels": codes}

    def observe(self, targets: dict[str, torch.Tensor], outputs):
        super().observe(targets, outputs)
        for name, value in outputs.items():
            if name.startswith("accuracy_"):
                self.step_logs.add(name, value)

    def collected_logs(self) -> dict[str, float]:
        statistics = code_statistics(self.accelerator.reduce(self._counts, "sum"))
        self._counts = torch.zeros_like(self._counts)
        return super().collected_logs() | {
            "majority_code": statistics["majority_code"],
            "codes_used": statistics["codebook_usage"],
        }

    def deployable_encoder(self) -> Beitv2Model:
        return self.whole_student().beitv2
