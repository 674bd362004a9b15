"""dBOT: in stages, a student predicts the features of a frozen teacher, the trained student of the stage before."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers.utils import cached_file

from ..hub.export import export_native, native_image_processor
from ..modeling.configuration_common import SHARED_FIELDS
from ..modeling.configuration_dbot import DBotConfig
from ..modeling.modeling_dbot import DBotModel
from ..modeling.modeling_dbot_pretraining import DBotForPreTraining
from ..utils.files import replaced_folder
from ..utils.layout import METRICS_FILE, STAGE_FILE, TEACHER_FOLDER
from .dbot_arguments import DBotTrainingArguments
from .frozen_target import check_reference, find_reference, fingerprint, save_reference
from .fsdp import load_whole_state_dict, whole_state_dict
from .schedules import TooLong, staged_cosine_schedule, warmup_too_long
from .target import has_target
from .teachers import FeatureTeacher, plain_images
from .trainer import MIMTrainer


def fitting_stages(stage_epochs: list[int], epochs: float) -> list[int]:
    """
    Shorten the stages of a run to `epochs`, in proportion and in whole epochs. The last one takes what is left.

    A run that is too short for one epoch per stage gets a single stage.
    """
    if epochs <= len(stage_epochs) - 1:
        return [math.ceil(epochs)]
    share = epochs / sum(stage_epochs)
    first = [max(1, int(stage * share)) for stage in stage_epochs[:-1]]
    while sum(first) >= epochs:
        first[first.index(max(first))] -= 1
    return [*first, math.ceil(epochs) - sum(first)]


class DBotTrainer(MIMTrainer):
    """
    [`MIMTrainer`] for [`DBotForPreTraining`] (`main_pretrain.py`, `engine_pretrain.py`; paper section 3).

    The student sees a part of an image, the teacher all of it. The first stage's teacher is a given model, or the
    student's own encoder as it is before the first step. When a new stage begins, just before its first step,

    - the student's encoder is saved in `output_dir/stage-1/`, `stage-2/`, …: a native model with its image processor
      and `metrics.json`, which holds its evaluation if there are images to evaluate on. (A run of several stages also
      saves the last one when it ends.)
    - the student's encoder becomes the teacher;
    - the student's weights are drawn again, except for the bias of the patch projection. The draw is the same in
      every process and does not depend on the random numbers that the run has used. The optimizer keeps its state
      unless `reset_optimizer_at_stage` is set.

    So checkpoints, evaluations and results at the end of a stage belong to the trained student. The teacher is frozen,
    has no stochastic depth, and is whole in every process, also under FSDP.

    In every stage, the learning rate starts at 0, warms up and falls along a cosine.

    Args:
        model (`DBotForPreTraining`): Student.
        args (`DBotTrainingArguments`): All options.
        teacher (`FeatureTeacher`, *optional*): Teacher of the first stage, on the student's grid, with features of
            `target_dim` numbers. It needs `processing_class`.
        **kwargs: As for [`MIMTrainer`].

    Raises:
        ValueError: If student, teacher and stages do not fit together.
    """

    model: DBotForPreTraining
    args: DBotTrainingArguments
    teacher: FeatureTeacher | DBotModel

    def __init__(
        self,
        model: DBotForPreTraining,
        args: DBotTrainingArguments,
        teacher: FeatureTeacher | None = None,
        **kwargs,
    ):
        config = model.config
        if teacher is None or args.num_stages > 1:
            if config.target_dim != config.hidden_size:
                raise ValueError(
                    f"the model predicts features of {config.target_dim} numbers (target_dim), and a student that "
                    f"becomes the teacher has {config.hidden_size} (hidden_size): train one stage only, or make them "
                    "equal"
                )
        if teacher is None and args.teacher_feature == "projected":
            raise ValueError("teacher_feature 'projected' needs a teacher from elsewhere: a student has no projection")
        if teacher is not None:
            if kwargs.get("processing_class") is None:
                raise ValueError("a teacher needs processing_class, the image processor that normalizes its images")
            if (teacher.grid, teacher.hidden_size) != (config.grid_size, config.target_dim):
                raise ValueError(
                    f"the teacher gives features of {teacher.hidden_size} numbers on a grid of {teacher.grid}, the "
                    f"model predicts {config.target_dim} (target_dim) on {config.grid_size}"
                )
        self.stage = 0
        self._first_teacher = teacher
        super().__init__(model=model, args=args, **kwargs)

    # Stages

    @property
    def stage_boundaries(self) -> list[int]:
        """First step of every stage, and the number of steps of the run."""
        epochs = (self.args.stage_epochs or [0])[:-1]
        return [0, *(self.steps_per_epoch * epoch for epoch in accumulate(epochs)), self.num_steps]

    def stage_of(self, step: int) -> int:
        """Return the index of the stage that `step` belongs to."""
        return sum(step >= start for start in self.stage_boundaries[1:-1])

    @staticmethod
    def schedules_too_long(args: Any, epochs: float, steps_per_epoch: int | None) -> list[TooLong]:
        stages, found = args.stage_epochs or [], []
        if sum(stages[:-1]) >= epochs:
            stages = fitting_stages(stages, epochs)
            problem = (
                f"stage {args.num_stages} begins after {sum(args.stage_epochs[:-1])} epochs (stage_epochs), the run "
                f"has only {epochs:.6g}"
            )
            found.append(TooLong(problem, "stage_epochs", stages))
            if args.stage_teacher_depth and len(stages) < args.num_stages:
                problem = f"stage_teacher_depth is for {args.num_stages} stages"
                found.append(TooLong(problem, "stage_teacher_depth", args.stage_teacher_depth[: len(stages)]))
        lengths = [*stages[:-1], epochs - sum(stages[:-1])]
        shortest = min(range(len(lengths)), key=lengths.__getitem__)
        part = f"stage {shortest + 1}" if stages else "the run"
        return [*found, *warmup_too_long(args, lengths[shortest], steps_per_epoch, part)]

    @property
    def _warmup(self) -> float:
        """Steps of a stage's warm-up, not necessarily a whole number."""
        args = self.args
        if args.warmup_steps > 0 or args.lr_scheduler_type != "cosine":
            return self.warmup_steps
        return args.warmup_epochs * self.steps_per_epoch

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.args.lr_scheduler_type != "cosine" or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        peak, final = self.args.learning_rate, self.args.min_learning_rate

        def factor(step: int) -> float:
            if not peak:
                return 0.0
            return staged_cosine_schedule(step, peak, final, self.stage_boundaries, self._warmup) / peak

        self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def schedule_values(self, step: int) -> dict[str, float]:
        return super().schedule_values(step) | {"stage": self.stage_of(step) + 1}

    def before_step(self):
        stage = self.stage_of(self.state.global_step)
        if stage > self.stage:
            # Only the main process builds a native model, which draws weights.
            with self.throughput.paused(), torch.random.fork_rng(devices=[]):
                self._keep_stage()
                self.stage = stage
                self.teacher = self._bootstrapped(self.deployable_encoder().state_dict())
                self._reinitialize()
            if self.args.reset_optimizer_at_stage:
                self.optimizer.state.clear()

    def _keep_stage(self):
        """Evaluate the student if there are images to evaluate on, and save its encoder. All processes call this."""
        metrics = {}
        if self.eval_dataset is not None and self.bank_dataset is not None:
            metrics = self.latest_evaluation() or self.evaluate()
        encoder, number = self.deployable_encoder(), self.stage + 1
        if not self.is_world_process_zero():
            return
        folder = Path(self.output_dir) / f"stage-{number}"
        try:
            with replaced_folder(folder) as temporary:
                export_native(encoder).save_pretrained(temporary)
                if self.processing_class is not None:
                    native_image_processor(self.processing_class).save_pretrained(temporary)
                facts = {"stage": number, "steps": self.state.global_step} | metrics
                (temporary / METRICS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise OSError(f"cannot save the encoder of stage {number} in {folder}: {error}") from error

    def after_training(self):
        super().after_training()
        if self.args.num_stages > 1 and self.state.global_step == self.num_steps:
            self._keep_stage()

    @contextmanager
    def _drawing_for_stage(self) -> Iterator[None]:
        """Make the CPU's random numbers depend on seed and stage alone within the block, and restore them after it."""
        seed = np.random.SeedSequence((self.args.seed, self.stage)).generate_state(1)[0]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            yield

    def _reinitialize(self):
        """Draw the student's weights again, on the CPU, so that they are the same on all kinds of devices."""
        student = self.accelerator.unwrap_model(self.model)
        weights = {name: tensor.to("cpu", copy=True) for name, tensor in whole_state_dict(student).items()}
        with torch.device("meta"):
            drawn = DBotForPreTraining(self.model.config)
        drawn.load_state_dict(weights, assign=True)
        with self._drawing_for_stage():
            drawn.reinitialize()
        load_whole_state_dict(student, drawn.state_dict())

    # Teacher

    def build_target(self) -> FeatureTeacher | DBotModel:
        if self._first_teacher is not None:
            return self._first_teacher.eval()
        return self._bootstrapped(self.model.dbot.state_dict())

    def _teacher_config(self) -> DBotConfig:
        """Return the configuration of the current stage's teacher when it comes from a student."""
        student, depths = self.model.config, self.args.stage_teacher_depth
        fields = {name: getattr(student, name) for name in (*SHARED_FIELDS, "layer_scale_init_value")}
        fields |= {"drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        if depths is not None:
            fields["num_hidden_layers"] = depths[self.stage]
        return DBotConfig(**fields, trainable_position_embeddings=student.trainable_position_embeddings)

    def _bootstrapped(self, weights: dict[str, torch.Tensor]) -> DBotModel:
        """Return the current stage's teacher with the weights of a student's encoder."""
        config = self._teacher_config()
        with self._drawing_for_stage():
            # Blocks that the student does not have keep their random weights.
            teacher = DBotModel._from_config(config, attn_implementation=self.model.config._attn_implementation)
        own = teacher.state_dict()
        teacher.load_state_dict(own | {name: value for name, value in weights.items() if name in own})
        return self._frozen(teacher)

    def _frozen(self, teacher: DBotModel) -> DBotModel:
        dtype = torch.float64 if self.model.dtype == torch.float64 else torch.float32
        nn.Module.to(teacher, self.args.device, dtype)
        return teacher.requires_grad_(False).eval()

    def compute_targets(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        pixel_values = inputs["pixel_values"]
        if isinstance(self.teacher, DBotModel):
            return {"labels": self.teacher.teach(pixel_values, layernorm=self.args.teacher_feature == "normed")}
        processor = self.processing_class
        return {"labels": self.teacher(plain_images(pixel_values, processor.image_mean, processor.image_std))}

    def record_batch(self, targets: dict[str, torch.Tensor], outputs):
        super().record_batch(targets, outputs)
        self.step_logs.add_features(outputs["cls_tokens"])

    # Checkpoints

    @cached_property
    def _first_fingerprint(self) -> str:
        assert self._first_teacher is not None
        return fingerprint(self._first_teacher)

    def save_target(self, folder: Path, target: nn.Module):
        if isinstance(target, FeatureTeacher):
            save_reference(folder, target.name, self._first_fingerprint)
        else:
            super().save_target(folder, target)
        (folder / STAGE_FILE).write_text(json.dumps({"stage": self.stage + 1}) + "\n", encoding="utf-8")

    def load_target(self, source: str, **hub_options):
        """
        Restore stage and teacher of a checkpoint.

        Raises:
            ValueError: If this run has another stage or teacher at that step.
            OSError: If one of them is missing or damaged.
        """
        saved, stage = _saved_stage(source, **hub_options), self.stage_of(max(self.state.global_step - 1, 0))
        if saved != stage + 1:
            raise ValueError(
                f"{source} was saved in stage {saved}, and with this run's stage_epochs {self.args.stage_epochs} its "
                f"step {self.state.global_step} belongs to stage {stage + 1}"
            )
        self.stage = stage
        if stage == 0 and self._first_teacher is not None:
            check_reference(source, self._first_teacher.name, self._first_fingerprint, **hub_options)
        else:
            self.teacher = self._load_bootstrapped(source, **hub_options)

    def continue_target(self, source: str, **hub_options):
        """Start with the teacher beside the model at `source`, unless this run has a given teacher."""
        if self._first_teacher is not None:
            return
        if has_target(source, **hub_options) or find_reference(source, **hub_options):
            self.teacher = self._load_bootstrapped(source, **hub_options)

    def _load_bootstrapped(self, source: str, **hub_options) -> DBotModel:
        reference = find_reference(source, **hub_options)
        if reference is not None:
            raise ValueError(
                f"{source} was trained with the teacher {reference['name']}: name it with --teacher_model_name_or_path"
            )
        config = self._teacher_config()
        try:
            teacher, info = DBotModel.from_pretrained(
                source,
                subfolder=TEACHER_FOLDER,
                config=config,
                dtype=self.teacher.dtype,
                attn_implementation=self.model.config._attn_implementation,
                output_loading_info=True,
                **hub_options,
            )
        except RuntimeError as error:
            raise ValueError(f"{source}/{TEACHER_FOLDER} is of another model: {error}") from error
        if info["missing_keys"] or info["unexpected_keys"]:
            raise ValueError(
                f"{source}/{TEACHER_FOLDER} is not a teacher of {config.num_hidden_layers} blocks like the student's "
                f"(stage_teacher_depth): missing {sorted(info['missing_keys'])[:3]}, "
                f"unexpected {sorted(info['unexpected_keys'])[:3]}"
            )
        return self._frozen(teacher)

    def deployable_encoder(self) -> DBotModel:
        student = self.whole_student()
        assert isinstance(student, DBotForPreTraining)
        return student.dbot


def _saved_stage(source: str, **hub_options) -> int:
    """Read the number of the stage, from 1 on, that `save_target` wrote."""
    file = cached_file(
        source, STAGE_FILE, subfolder=TEACHER_FOLDER, _raise_exceptions_for_missing_entries=False, **hub_options
    )
    if file is None:
        raise FileNotFoundError(f"{source} has no {TEACHER_FOLDER}/{STAGE_FILE}, which holds its stage")
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))["stage"]
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"{source}/{TEACHER_FOLDER}/{STAGE_FILE} is damaged") from error
