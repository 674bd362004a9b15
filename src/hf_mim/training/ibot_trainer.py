"""iBOT: the target network is a moving average of the student, an *online tokenizer* (paper section 3)."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import cached_file

from ..data.color import color_batch
from ..modeling.modeling_ibot import IBotPreTrainedModel
from ..modeling.modeling_ibot_pretraining import IBotForPreTraining
from ..utils.layout import CENTERS_FILE, TEACHER_FOLDER
from .fsdp import reshard
from .ibot_arguments import IBotTrainingArguments
from .ibot_targets import CenteredTargets, sinkhorn_knopp
from .schedules import TooLong, cosine_schedule, teacher_temperature, temperatures_too_long
from .trainer import MIMTrainer


class IBotTrainer(MIMTrainer):
    """
    [`MIMTrainer`] for [`IBotForPreTraining`] and [`IBotSwinForPreTraining`] (`main_ibot.py`).

    The teacher sees the unmasked global views. Its CLS token is the target of the student's CLS token in every other
    view. Its patches are the targets of the student's masked patches in the same view.

    Args:
        model (`IBotForPreTraining` or `IBotSwinForPreTraining`): Student.
        args (`IBotTrainingArguments`): All options.
        **kwargs: As for [`MIMTrainer`].

    Raises:
        ValueError: If a student with separate last layers of different sizes has a teacher with a shared one.
    """

    target_method = "teach"
    model: IBotForPreTraining
    args: IBotTrainingArguments
    teacher: IBotForPreTraining

    def __init__(self, model: IBotForPreTraining, args: IBotTrainingArguments, **kwargs):
        if args.world_size > 1:
            if model.head.has_batch_norm and args.device.type == "cpu":
                raise ValueError("head_norm 'bn' and 'syncbn' need GPUs when there is more than one process")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        super().__init__(model=model, args=args, **kwargs)
        config = self.teacher.config
        patch_out_dim = config.out_dim if config.shared_head else config.patch_out_dim
        self.targets = CenteredTargets(
            config.out_dim, patch_out_dim, args.center_momentum, args.patch_center_momentum
        ).to(args.device, self.teacher.dtype)
        self._prototypes_seen = torch.zeros(config.out_dim, dtype=torch.bool, device=args.device)
        self._teacher_prototypes = torch.zeros(0)

    def build_target(self) -> IBotForPreTraining:
        """Return a copy of the student without stochastic depth and dropout."""
        student = self.model.config
        config = copy.deepcopy(student)
        config.drop_path_rate = config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        config.shared_head = self.args.shared_head_teacher
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        if config.shared_head != student.shared_head:
            if config.patch_out_dim != config.out_dim or not config.head_bottleneck_size:
                raise ValueError(
                    f"shared_head is {student.shared_head} and shared_head_teacher {config.shared_head}: this needs a "
                    f"bottleneck and equal out_dim ({config.out_dim}) and patch_out_dim ({config.patch_out_dim}); "
                    f"otherwise set shared_head_teacher to {student.shared_head}"
                )
            # The original loads one layer over the other, and the last one wins (`main_ibot.py`).
            for name in ("direction", "magnitude"):
                cls_key, patch_key = f"head.last_layer.{name}", f"head.patch_last_layer.{name}"
                if config.shared_head:
                    weights[cls_key] = weights.pop(patch_key)
                else:
                    weights[patch_key] = weights[cls_key].clone()
        with torch.device("meta"):
            teacher = type(self.model)(config)
        if self.args.world_size > 1:
            teacher = nn.SyncBatchNorm.convert_sync_batchnorm(teacher)
        teacher.load_state_dict(weights, assign=True)
        # As in the original. Only batch norm depends on the mode: in training mode it uses the batch.
        return teacher.train()

    def normalize_inputs(self, inputs: dict[str, Any]):
        """Normalize raw views, and give them the colors that their parameters describe, on the device."""
        parameters, processor = inputs.pop("color_parameters", None), self.processing_class
        if parameters is None or inputs["pixel_values"].dtype != torch.uint8 or processor is None:
            super().normalize_inputs(inputs)
        else:
            color_batch(inputs, parameters, processor.image_mean, processor.image_std)

    @staticmethod
    def schedules_too_long(args: Any, epochs: float, steps_per_epoch: int | None) -> list[TooLong]:
        warmup_epochs, start_epoch = args.warmup_teacher_temp_epochs, args.pred_start_epoch
        return [
            *MIMTrainer.schedules_too_long(args, epochs, steps_per_epoch),
            *temperatures_too_long(warmup_epochs, start_epoch, math.ceil(epochs)),
        ]

    def temperatures_at(self, step: int) -> tuple[float, float]:
        """Return the teacher temperatures at `step` for CLS token and patches. They change from epoch to epoch."""
        args, epoch = self.args, self.epoch_of(step)
        return (
            teacher_temperature(epoch, args.warmup_teacher_temp, args.teacher_temp, args.warmup_teacher_temp_epochs),
            teacher_temperature(
                epoch,
                args.warmup_teacher_patch_temp,
                args.teacher_patch_temp,
                args.warmup_teacher_temp_epochs,
                args.pred_start_epoch,
            ),
        )

    def momentum_at(self, step: int) -> float:
        """Return the momentum of the teacher at `step`."""
        return cosine_schedule(step, self.args.momentum_teacher, 1.0, self.num_steps)

    def compute_targets(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if inputs.get("mask_indices") is None:
            inputs["mask_indices"] = inputs["bool_masked_pos"].flatten().nonzero().squeeze(1)
        cls_temp, patch_temp = self.temperatures_at(self.state.global_step)
        moves_centers = self.args.target == "centering" and self.model.training
        taught = self.teacher.teach(inputs["pixel_values"], inputs["mask_indices"], mean_patch_logit=moves_centers)
        assert taught.cls_tokens is not None and taught.cls_logits is not None and taught.patch_logits is not None
        if self.args.target == "sinkhorn":
            iterations = self.args.sinkhorn_iterations
            target_cls = sinkhorn_knopp(taught.cls_logits.flatten(0, 1), cls_temp, iterations)
            target_cls = target_cls.unflatten(0, taught.cls_logits.shape[:2])
            target_patch = sinkhorn_knopp(taught.patch_logits, patch_temp, iterations)
        else:
            target_cls, target_patch = self.targets(taught.cls_logits, taught.patch_logits, cls_temp, patch_temp)
            if taught.mean_patch_logit is not None:
                mean_cls_logit = taught.cls_logits.mean((0, 1), dtype=self.targets.cls_center.dtype)
                self.targets.collect(mean_cls_logit, taught.mean_patch_logit)

        self.step_logs.add_features(taught.cls_tokens.flatten(0, 1))
        self._teacher_prototypes = taught.cls_logits.argmax(-1)
        if self.args.torch_compile:
            # The number of masked patches changes from batch to batch. Compiled for any number from the start, the
            # student is not compiled again at the second batch.
            for tensor in (inputs["mask_indices"], target_patch):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return {"target_cls": target_cls, "target_patch": target_patch}

    def record_batch(self, targets: dict[str, torch.Tensor], outputs):
        super().record_batch(targets, outputs)
        target_cls = targets["target_cls"].float()
        self.step_logs.add("target_entropy", torch.special.entr(target_cls).sum(-1).mean())
        self._prototypes_seen.index_fill_(0, target_cls.argmax(-1).flatten(), True)
        if target_cls.shape[1] > 1:
            student = outputs["cls_logits"][:, 1].argmax(-1)
            self.step_logs.add("agreement", (self._teacher_prototypes[:, 0] == student).float().mean())

    def collect_logs(self) -> dict[str, float]:
        seen = self.accelerator.gather(self._prototypes_seen[None]).any(0)
        self._prototypes_seen.zero_()
        return super().collect_logs() | {"prototypes_used": seen.float().mean().item()}

    def schedule_values(self, step: int) -> dict[str, float]:
        cls_temp, patch_temp = self.temperatures_at(step)
        return super().schedule_values(step) | {
            "teacher_momentum": self.momentum_at(step),
            "teacher_temp": cls_temp,
            "teacher_patch_temp": patch_temp,
        }

    def before_optimizer_step(self):
        super().before_optimizer_step()
        self.targets.update()
        if self.epoch_of(self.state.global_step) < self.args.freeze_last_layer:
            # Without a gradient the optimizer leaves a parameter alone: no update, no decay, no moments.
            for name, parameter in self.model.named_parameters():
                if "last_layer" in name:
                    parameter.grad = None

    @torch.no_grad()
    def after_optimizer_step(self):
        if self.is_fsdp_enabled:
            reshard(self.model, self.teacher)
        student = dict(self.accelerator.unwrap_model(self.model).named_parameters())
        # Only what both have: a last layer that is separate on one side only does not follow.
        pairs = [(average, student[name]) for name, average in self.teacher.named_parameters() if name in student]
        averages, current = map(list, zip(*pairs, strict=True))
        torch._foreach_lerp_(averages, current, 1 - self.momentum_at(self.state.global_step))

    def save_target(self, folder: Path, target: nn.Module):
        super().save_target(folder, target)
        centers = {name: center.contiguous() for name, center in self.targets.state_dict().items()}
        save_file(centers, folder / CENTERS_FILE)

    def load_target(self, source: str, **hub_options):
        super().load_target(source, **hub_options)
        file = cached_file(
            source, CENTERS_FILE, subfolder=TEACHER_FOLDER, _raise_exceptions_for_missing_entries=False, **hub_options
        )
        if file is None:
            raise FileNotFoundError(f"{source}/{TEACHER_FOLDER} has no {CENTERS_FILE}, the centers of the targets")
        try:
            self.targets.load_state_dict(load_file(file))
        except RuntimeError as error:
            raise ValueError(f"{source}/{TEACHER_FOLDER}/{CENTERS_FILE} is of another model: {error}") from error

    def deployable_encoder(self) -> IBotPreTrainedModel:
        teacher = self.whole_target()
        assert isinstance(teacher, IBotForPreTraining)
        return teacher.ibot
