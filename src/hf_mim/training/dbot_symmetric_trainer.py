"""Symmetric variant of dBOT: a BEiT predicts a frozen teacher's features of masked patches (branch `beit`)."""

from typing import Any

import torch
from torch import nn

from ..data.color import normalize_views
from ..modeling.modeling_beitv2 import Beitv2Model
from ..modeling.modeling_beitv2_pretraining import Beitv2ForPreTraining
from .dbot_symmetric_arguments import DBotSymmetricTrainingArguments
from .frozen_target import FrozenTargetTrainer
from .optimization import BEITV2_WITHOUT_DECAY, decayed_parameter_names
from .teachers import FeatureTeacher


class DBotSymmetricTrainer(FrozenTargetTrainer):
    """
    [`MIMTrainer`] for [`Beitv2ForPreTraining`] with a `regression_loss` (`engine_for_pretraining.py` of dBOT's branch
    `beit`). The teacher sees the crop unmasked, in its own rendering if the batch has one (`target_pixel_values`). Its
    features are the labels of the masked patches.

    Raw (uint8) views are normalized here, for each of the two networks. Other batches hold normalized `pixel_values`
    and, for the teacher, `target_pixel_values` in 0..1.

    Args:
        model (`Beitv2ForPreTraining`): Student, with a `regression_loss`.
        args (`DBotSymmetricTrainingArguments`): All options.
        teacher (`FeatureTeacher`): Gives the targets, on the student's grid and as wide as the student's prediction.
        **kwargs: As for [`MIMTrainer`].

    Raises:
        ValueError: If student and teacher do not fit together, or a batch lacks images for the teacher.
    """

    model: Beitv2ForPreTraining
    args: DBotSymmetricTrainingArguments
    teacher: FeatureTeacher

    def __init__(
        self,
        model: Beitv2ForPreTraining,
        args: DBotSymmetricTrainingArguments,
        teacher: FeatureTeacher,
        **kwargs,
    ):
        config = model.config
        if config.regression_loss is None:
            raise ValueError("the model predicts codes: set regression_loss, to 'negcosine' for example")
        if (teacher.grid, teacher.hidden_size) != (config.grid_size, config.target_dim):
            raise ValueError(
                f"the teacher gives features of {teacher.hidden_size} numbers on a grid of {teacher.grid}, the model "
                f"predicts {config.target_dim} (target_dim) on {config.grid_size}"
            )
        super().__init__(model=model, args=args, target=teacher, target_name=teacher.name, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return decayed_parameter_names(model, BEITV2_WITHOUT_DECAY)

    def normalize_inputs(self, inputs: dict[str, Any]):
        images = inputs.get("target_pixel_values", inputs["pixel_values"])
        super().normalize_inputs(inputs)
        if images.dtype == torch.uint8:
            channels = images.shape[1]
            # The teacher normalizes them itself.
            images = normalize_views(images, [0.0] * channels, [1.0] * channels)
        elif "target_pixel_values" not in inputs:
            raise ValueError("normalized pixel_values need target_pixel_values, in 0..1, beside them for the teacher")
        inputs["target_pixel_values"] = images

    def compute_targets(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"labels": self.teacher(inputs.pop("target_pixel_values"))}

    def deployable_encoder(self) -> Beitv2Model:
        student = self.whole_student()
        assert isinstance(student, Beitv2ForPreTraining)
        return student.beitv2
