"""
The trainer that all methods share: a target network beside the student, and one call of the student per step.

    views + masks ─► compute_targets (no gradient) ─► targets
                └──► model(**inputs, **targets) ────► loss
"""

import logging
import math
import signal
from abc import ABC, abstractmethod
from collections.abc import Sized
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.profiler import record_function
from transformers import PreTrainedModel, Trainer
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import TrainOutput

from ..data.color import normalize_views
from ..data.workers import ignore_stop_signals
from ..utils.layout import TEACHER_FOLDER
from .arguments import MIMTrainingArguments
from .callbacks.checkpoint_uploads import CheckpointUploads, uploads_checkpoints
from .callbacks.collapse import CollapseCallback
from .callbacks.early_ends import early_ends
from .callbacks.knn_watch import KnnWatch
from .callbacks.nan_check import FiniteCheck
from .callbacks.online_knn import knn_of_processes
from .callbacks.profiling import ProfileCallback
from .callbacks.progress import MIMProgressCallback, StepCallback
from .callbacks.step_logs import StepLogs
from .callbacks.stop_signals import EXIT_INTERRUPTED, StopSignals
from .callbacks.throughput import Throughput
from .callbacks.unreadable_images import UnreadableImages
from .checkpoints import checkpoint_to_resume, describe_last, saved_if_it_fails, saved_step, staged_checkpoint
from .fsdp import WholeCopies, as_whole, complete_optimizer_state, local_part, prepare_fsdp
from .optimization import clip_gradients_per_tensor, decayed_parameter_names
from .schedules import TooLong, cosine_schedule, fit_or_refuse, warmup_too_long
from .target import TargetCallback, has_target, load_target_weights


logger = logging.getLogger(__name__)


class MIMTrainer(Trainer, ABC):
    """
    [`transformers.Trainer`] with a target network, which it owns, saves in every checkpoint (`teacher/`) and restores.

    Each method subclasses this trainer. `build_target` creates the target network (none by default),
    `compute_targets` runs it on a batch, `after_optimizer_step` updates it, `save_target` and `load_target` store it,
    and `deployable_encoder` returns the network that is evaluated and published.

    Args:
        model (`PreTrainedModel`): Student. Its `forward` returns `loss` first and the parts of the loss as `loss_*`.
        args (`MIMTrainingArguments`): All options.
        eval_dataset (`datasets.Dataset`, *optional*): Images to evaluate on. The k-NN evaluation classifies them and
            needs their labels.
        bank_dataset (`datasets.Dataset`, *optional*): Labeled images among which k-NN looks for neighbors.
        **kwargs: As for `Trainer`. `processing_class`, the image processor, is needed for the k-NN evaluation and for
            raw (uint8) views, which are normalized with its mean and standard deviation.

    Raises:
        ValueError: If the options contradict each other, at construction or before the first step.
    """

    # The student's loss is a mean over its batch, so it has to be divided by the number of accumulation steps.
    loss_is_scaled_for_ga = False
    # `measure` is k-NN and needs a bank of labeled images.
    needs_bank = True
    # The full model is more than the network that is deployed.
    keeps_full_model = True
    # The only method of the target network that `compute_targets` calls, around which FSDP gathers the parameters.
    # None leaves the target network whole in every process, because its layers are not those of the student.
    target_method: str | None = None

    args: MIMTrainingArguments
    model: PreTrainedModel
    teacher: PreTrainedModel | nn.Module | None
    optimizer: torch.optim.Optimizer
    lr_scheduler: LambdaLR
    # An image processor, whose base class does not declare image_mean and image_std.
    processing_class: Any

    def __init__(
        self, model: PreTrainedModel, args: MIMTrainingArguments, bank_dataset: Dataset | None = None, **kwargs
    ):
        super().__init__(model=model, args=args, **kwargs)
        self.model_accepts_loss_kwargs = False
        if self.is_deepspeed_enabled:
            raise ValueError("the target network cannot be sharded by DeepSpeed: use FSDP 2 or DDP")
        if self.is_fsdp_enabled:
            prepare_fsdp(self.accelerator)
        if args.eval_strategy != "no" and self.needs_bank and bank_dataset is None:
            raise ValueError("an evaluation while training is k-NN: it needs bank_dataset beside eval_dataset")
        self.bank_dataset = bank_dataset
        self.output_dir = str(args.output_dir)
        self.resumed_from: str | None = None
        self.steps_per_epoch, self.num_steps = 0, 0
        self.step_logs = StepLogs(self.accelerator)
        self.throughput = Throughput()
        self.stop_signals = StopSignals(args.ddp_timeout_delta, args.dataloader_timeout, args.local_process_index == 0)
        self._finite = FiniteCheck(self._advice)
        self._unreadable = UnreadableImages(self._num_images(), args.max_unreadable_fraction, args.world_size)
        self._student_copies = WholeCopies(model) if self.is_fsdp_enabled else None
        self.target_copies: WholeCopies | None = None
        target = self.build_target()
        if target is not None:
            # A moving average does not move in half precision: 1 + 0.004·0.1 is 1 in bfloat16.
            dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
            target = target.to(args.device, dtype).requires_grad_(False)
            self.add_callback(TargetCallback(self))
        self.teacher = target
        self.add_callback(StepCallback(self))
        self.add_callback(self.stop_signals)
        self.add_callback(CollapseCallback())
        if self.needs_bank and isinstance(self.eval_dataset, Sized):
            self.add_callback(KnnWatch(len(self.eval_dataset)))
        if uploads_checkpoints(args):
            self.add_callback(CheckpointUploads(args, self.keeps_full_model))
        if args.profile:
            self.add_callback(ProfileCallback(self.throughput))
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(MIMProgressCallback)

    # Hooks for methods

    def build_target(self) -> nn.Module | None:
        """Return the target network as it is before the first step; None for a method without one."""
        return None

    def compute_targets(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """
        Return the targets of a batch as keyword arguments of the student. Called without gradients, under autocast.

        Args:
            inputs (`dict`): Normalized batch on the device. Entries that the student does not take are popped here.
        """
        return {}

    @abstractmethod
    def deployable_encoder(self) -> PreTrainedModel:
        """Return the network that is evaluated and published. All processes must call this."""

    def normalize_inputs(self, inputs: dict[str, Any]):
        """Normalize raw (uint8) views of a batch, in place, on the device: bytes are a quarter of the transfer."""
        views, processor = inputs["pixel_values"], self.processing_class
        if views.dtype == torch.uint8:
            if processor is None:
                raise ValueError(
                    "raw views need processing_class, the image processor, for its mean and standard deviation"
                )
            inputs["pixel_values"] = normalize_views(views, processor.image_mean, processor.image_std)

    def before_step(self):
        """Called before the forward pass of every step."""

    def before_optimizer_step(self):
        """Called after the gradients are clipped. Checks the step's values and sets the weight decay."""
        self._finite.end_step(self.state.global_step + 1)
        self.optimizer.param_groups[0]["weight_decay"] = self.weight_decay_at(self.state.global_step)

    def after_optimizer_step(self):
        """Called after every step of the optimizer, before `state.global_step` grows."""

    def after_training(self):
        """Called after the last step. Raises `FloatingPointError` unless its loss and the weights are finite."""
        self.check_finite()

    def record_batch(self, targets: dict[str, torch.Tensor], outputs):
        """Called with targets and outputs of every batch. Records what the logs show of them."""
        for name, value in outputs.items():
            if name.startswith("loss_"):
                self.step_logs.add(name, value)

    def collect_logs(self) -> dict[str, float]:
        """Return the values of the next log: the steps since the last one, unreadable images, speed, schedules."""
        logs = self.step_logs.collect() | {"data/unreadable": self._unreadable.count()}
        logs |= self.throughput.collect(self.accelerator)
        return logs | self.schedule_values(max(self.state.global_step - 1, 0))

    def schedule_values(self, step: int) -> dict[str, float]:
        """Return the values of the schedules at `step`, for the logs."""
        return {"weight_decay": self.weight_decay_at(step)}

    @staticmethod
    def schedules_too_long(args: Any, epochs: float, steps_per_epoch: int | None) -> list[TooLong]:
        """Return the schedules longer than a run of `epochs`; those in steps only with `steps_per_epoch`."""
        return warmup_too_long(args, epochs, steps_per_epoch)

    def save_target(self, folder: Path, target: nn.Module):
        """Write all that `load_target` needs into `folder`; `target` is the whole target network."""
        assert isinstance(target, PreTrainedModel)
        target.save_pretrained(folder)

    def load_target(self, source: str, **hub_options):
        """Restore what `save_target` wrote into `teacher/` of `source`, a folder or a Hub id."""
        assert isinstance(self.teacher, PreTrainedModel)
        load_target_weights(self.teacher, source, **hub_options)

    def continue_target(self, source: str, **hub_options):
        """Start from the target network beside the model at `source`, a folder or a Hub id, if there is one."""
        if self.teacher is not None and has_target(source, **hub_options):
            self.load_target(source, **hub_options)

    # Networks

    def whole_target(self) -> nn.Module | None:
        """Return the target network with all its parameters. If it is sharded, a copy. All processes call this."""
        if self.teacher is None or self.target_copies is None:
            return self.teacher
        return self.target_copies.of(self.teacher, self.args.device)

    def whole_student(self) -> PreTrainedModel:
        """Return the student with all its parameters. If it is sharded, a copy. All processes call this."""
        student = self.accelerator.unwrap_model(self.model)
        return student if self._student_copies is None else self._student_copies.of(student, self.args.device)

    # Schedules

    def epoch_of(self, step: int) -> int:
        """Return the index of the epoch that `step` belongs to."""
        return step // self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        """Steps of the learning rate's warm-up."""
        if self.args.warmup_steps > 0 or self.args.lr_scheduler_type != "cosine":
            return self.args.get_warmup_steps(self.num_steps)
        return int(self.args.warmup_epochs * self.steps_per_epoch)

    def weight_decay_at(self, step: int) -> float:
        """Weight decay of the decayed parameters at `step`."""
        end = self.args.weight_decay_end
        if end is None:
            return self.args.weight_decay
        return cosine_schedule(step, self.args.weight_decay, end, self.num_steps)

    def set_initial_training_values(self, args, dataloader):
        values = super().set_initial_training_values(args, dataloader)
        num_train_epochs, self.steps_per_epoch, self.num_steps = values[0], values[1], values[-1]
        if self.resumed_from is not None and saved_step(self.resumed_from) >= self.num_steps:
            # Resumed from the last checkpoint, Trainer would take one step too many.
            num_train_epochs = saved_step(self.resumed_from) // self.steps_per_epoch
        if self._num_images() is None:
            # Trainer takes the whole run over a stream as one epoch.
            self.steps_per_epoch = max(1, round(self.num_steps / args.num_train_epochs))
        self.throughput.restart()
        fit_or_refuse(args, self.schedules_too_long(args, self.num_steps / self.steps_per_epoch, self.steps_per_epoch))
        return num_train_epochs, *values[1:]

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.args.lr_scheduler_type != "cosine" or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        peak, final = self.args.learning_rate, self.args.min_learning_rate

        def factor(step: int) -> float:
            return cosine_schedule(step, peak, final, num_training_steps, self.warmup_steps) / peak if peak else 0.0

        self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return decayed_parameter_names(model)

    # One step

    def get_train_dataloader(self):
        dataloader = super().get_train_dataloader()
        # accelerate's loader passes everything but iteration itself to the loader that it wraps.
        loader = getattr(dataloader, "base_dataloader", dataloader)
        loader.worker_init_fn = partial(ignore_stop_signals, before=loader.worker_init_fn)
        loader.timeout = self.args.dataloader_timeout if loader.num_workers else 0
        return dataloader

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        with self.throughput.waiting(), self.stop_signals.may_end(limited=True), record_function("wait for data"):
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.throughput.count(sum(len(batch["pixel_values"]) for batch in batches))
        return batches, num_items

    def prepare_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Count the unreadable images of a batch of the collator and normalize its views, in place."""
        self._unreadable.note(inputs.pop("unreadable", []), len(inputs["pixel_values"]))
        self.normalize_inputs(inputs)
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.prepare_batch(inputs)
        with record_function("targets"), torch.no_grad(), self.accelerator.autocast():
            targets = self.compute_targets(inputs)
        with record_function("student"), self.accelerator.autocast():
            outputs = model(**inputs, **targets)
        for name in outputs:
            if name.startswith("loss"):
                self._finite.add(name, outputs[name].detach() / self.current_gradient_accumulation_steps)
        self.record_batch(targets, outputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _clip_grad_norm(self, model: nn.Module):
        if self.args.grad_clip == "global":
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        return clip_gradients_per_tensor(model, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        # With fp16 the loss is scaled until the gradient overflows, and that step is left out: nothing is wrong.
        if self.accelerator.scaler is None:
            norm = as_whole(torch.as_tensor(norm, device=self.args.device))
            self._finite.add("grad_norm", norm)
        return norm

    def check_finite(self):
        """Raise `FloatingPointError` unless the last step and the weights after it are finite."""
        self._finite.flush()
        parameters = [*self.model.parameters(), *(() if self.teacher is None else self.teacher.parameters())]
        parts = [local_part(parameter) for parameter in parameters]
        largest = torch._foreach_norm([part for part in parts if part.numel()], ord=math.inf)
        if not self.accelerator.gather(torch.stack(largest).isfinite().all()[None]).all():
            raise FloatingPointError(
                f"weights are not finite after step {self.state.global_step}. {describe_last(self.output_dir)}"
            )

    def _advice(self) -> str:
        half = " fp16 overflows easily: prefer bf16 or fp32." if self.args.fp16 else ""
        return (
            "The usual cause is a learning rate that is too high "
            f"(here {self.lr_scheduler.get_last_lr()[0]:.4g}) or a warm-up that is too short "
            f"(here {self.warmup_steps} steps).{half} {describe_last(self.output_dir)}"
        )

    def _num_images(self) -> int | None:
        """Number of training images; None for a stream, which has no length."""
        return len(self.train_dataset) if isinstance(self.train_dataset, Sized) else None

    # Logs and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None):
        if "loss" in logs:
            logs.update(self.collect_logs())
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        Evaluate the deployable encoder on `eval_dataset`, and log the metrics.

        Raises:
            ValueError: If images, or labeled ones to compare them with, are missing.
        """
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if eval_dataset is None:
            raise ValueError("an evaluation needs eval_dataset")
        with self.throughput.paused():
            with saved_if_it_fails(self), self.stop_signals.may_end():
                measured = self.measure(eval_dataset)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self, eval_dataset) -> dict[str, float]:
        """
        Return the metrics of an evaluation: here k-NN accuracies in percent of the deployable encoder, `eval_dataset`
        against `bank_dataset`. All processes must call this.
        """
        if self.bank_dataset is None:
            raise ValueError("the k-NN evaluation needs both eval_dataset and bank_dataset, with labels")
        return knn_of_processes(
            self.deployable_encoder(),
            self.bank_dataset,
            eval_dataset,
            self.processing_class,
            self.accelerator,
            self.args,
        )

    def latest_evaluation(self) -> dict[str, float]:
        """Return the metrics of the current weights; empty unless they have been evaluated."""
        evaluations = [entry for entry in self.state.log_history if any(name.startswith("eval_") for name in entry)]
        if not evaluations or evaluations[-1]["step"] != self.state.global_step:
            return {}
        return {name: value for name, value in evaluations[-1].items() if name.startswith("eval_")}

    # Training and checkpoints

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial=None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Train, from the beginning or from a checkpoint. SIGTERM, SIGINT (Ctrl-C) and SIGHUP end the run after the
        current step: it is saved, and the process exits with code 75.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint; True for the newest one in
                `output_dir`; "latest" for the newest one that is whole, or a new start if there is none at all.

        Raises:
            OSError: If the checkpoint is not whole, or (also later) one cannot be written.
            ValueError: If it belongs to another model, or to a run with other batches.
            FloatingPointError: If loss or gradient are not finite; the step is not taken.
            SystemExit: After a signal.
        """
        args, parts = self.args, () if self.teacher is None else (TEACHER_FOLDER,)
        self.resumed_from = checkpoint_to_resume(self, resume_from_checkpoint, parts)
        result: Any = None
        # With a limit of one, Trainer would leave only the best checkpoint, not the one to continue from.
        self._save_total_limit, args.save_total_limit = args.save_total_limit, None
        try:
            with self.stop_signals, early_ends(self):
                result = super().train(self.resumed_from, trial, ignore_keys_for_eval)
        finally:
            args.save_total_limit = self._save_total_limit
        if self.stop_signals.received is not None and self.stop_signals.stopping:
            logger.warning(
                f"stopped by {signal.Signals(self.stop_signals.received).name} after step {self.state.global_step}. "
                f"{describe_last(self.output_dir)} Start the run again in the same way to continue from there."
            )
            raise SystemExit(EXIT_INTERRUPTED)
        return result

    def _save_checkpoint(self, model: nn.Module, trial):
        self.check_finite()
        with self.throughput.paused(), staged_checkpoint(self, self._save_total_limit) as folder:
            if self.is_fsdp_enabled:
                complete_optimizer_state(self.optimizer)
            super()._save_checkpoint(model, trial)
            target = self.whole_target()
            if target is not None and self.args.should_save:
                self.save_target(folder / TEACHER_FOLDER, target)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None):
        """Do nothing: `hf-mim pretrain` and the first uploaded checkpoint create the repositories."""

    def push_to_hub(self, *args, **kwargs):
        """Raise `ValueError`: a trainer has neither the card nor the deployable encoder that are published."""
        raise ValueError("a trainer alone has no result to upload: `hf-mim pretrain --push_to_hub` has one")
