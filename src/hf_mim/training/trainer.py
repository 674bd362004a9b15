"""
The trainer that all methods share: a target network beside the student, and one call of the student per step.

    views + masks ─► compute_targets (no gradient) ─► targets
                └──► model(**inputs, **targets) ────► loss
"""

import copy
import logging
import math
import os
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim.lr_scheduler import LambdaLR
from torch.profiler import record_function
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import cached_file

from ..data.color import color_batch, normalize_views
from ..data.datasets import StreamedViewsDataset
from ..data.workers import ignore_stop_signals
from ..utils.layout import TEACHER_FOLDER
from .arguments import MIMTrainingArguments
from .callbacks.checkpoint_uploads import CheckpointUploads, uploads_checkpoints
from .callbacks.collapse import CollapseCallback
from .callbacks.nan_check import FiniteCheck
from .callbacks.online_knn import knn_of_processes
from .callbacks.profiling import ProfileCallback
from .callbacks.progress import MIMProgressCallback, StepCallback
from .callbacks.step_logs import StepLogs
from .callbacks.stop_signals import EXIT_INTERRUPTED, StopSignals
from .callbacks.throughput import Throughput
from .callbacks.unreadable_images import UnreadableImages
from .checkpoints import (
    STAGING_FOLDER,
    check_whole,
    describe_last,
    find_checkpoint,
    put_in_place,
    remove_old_checkpoints,
    write_manifest,
)
from .fsdp import ShardedTarget, as_whole, complete_optimizer_state, local_part, whole_state_dict
from .optimization import clip_gradients_per_tensor, decayed_parameter_names
from .schedules import cosine_schedule


logger = logging.getLogger(__name__)

# How torch.save tells of a full disk.
FAILED_WRITES = ("PytorchStreamWriter", "inline_container", "iostream error")


class MIMTrainer(Trainer, ABC):
    """
    [`transformers.Trainer`] with a target network, which it owns, saves in every checkpoint (`teacher/`) and restores.

    A method is a subclass that says how the target network is built (`build_target`), what it is good for
    (`compute_targets`), when it changes (`update_target`), how it is saved and loaded, and which network is the result
    (`deployable_encoder`).

    Args:
        model (`PreTrainedModel`): The student; its `forward` returns the loss first, and its parts as `loss_*`.
        args (`MIMTrainingArguments`): All options.
        eval_dataset (`datasets.Dataset`, *optional*): Images to evaluate on: those, with labels, that the k-NN
            evaluation classifies.
        bank_dataset (`datasets.Dataset`, *optional*): Images with labels among which it looks for neighbours.
        **kwargs: As for `Trainer`. `processing_class`, the image processor, is needed for raw (uint8) views, whose
            mean and standard deviation it knows, and for the k-NN evaluation.

    Raises:
        ValueError: If the options do not fit together, at construction or before the first step.
    """

    # The student's loss is a mean over its batch: it has to be divided by the number of accumulation steps.
    loss_is_scaled_for_ga = False
    # Whether `measure` is k-NN, which needs a bank of labelled images.
    needs_bank = True
    # Whether the full model is more than what is deployed.
    keeps_full_model = True

    def __init__(self, model: PreTrainedModel, args: MIMTrainingArguments, bank_dataset=None, **kwargs):
        super().__init__(model=model, args=args, **kwargs)
        self.model_accepts_loss_kwargs = False
        if self.is_deepspeed_enabled or (self.is_fsdp_enabled and not self.accelerator.is_fsdp2):
            raise ValueError("the target network cannot be sharded by DeepSpeed or FSDP 1: use FSDP 2 or DDP")
        if self.is_fsdp_enabled and "SHARDED" not in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            raise ValueError("FSDP checkpoints must be sharded: set fsdp_state_dict_type to SHARDED_STATE_DICT")
        if args.eval_strategy != "no" and self.needs_bank and bank_dataset is None:
            raise ValueError("an evaluation while training is k-NN: it needs bank_dataset beside eval_dataset")
        if self.is_fsdp_enabled:
            # Autocast brings half precision, as it does without FSDP: targets, losses and gradients stay in float32.
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
        self.bank_dataset = bank_dataset
        self.steps_per_epoch: int | None = None
        self.num_steps: int | None = None
        self.step_logs = StepLogs(self.accelerator)
        self._step_values: dict[str, torch.Tensor] = {}
        self._finite = FiniteCheck()
        self.stop_signals = StopSignals(timedelta(seconds=args.ddp_timeout))
        self._checkpoint_root: str | None = None
        self._sharded_target: ShardedTarget | None = None
        # Sharding changes the class of the module.
        self._skeleton = copy.deepcopy(model).to("meta") if self.is_fsdp_enabled else None
        self._unreadable = UnreadableImages(self._num_images(), args.max_unreadable_fraction, args.world_size)
        self._throughput = Throughput()
        # An average in half precision does not move: 1 + 0.004·0.1 is 1 in bfloat16.
        dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
        self.teacher = self.build_target().to(args.device, dtype).requires_grad_(False)
        self.add_callback(StepCallback(self))
        self.add_callback(self.stop_signals)
        self.add_callback(CollapseCallback())
        if uploads_checkpoints(args):
            self.add_callback(CheckpointUploads(args, self.keeps_full_model))
        if args.profile:
            self.add_callback(ProfileCallback(self._throughput))
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(MIMProgressCallback)

    # What a method defines

    @abstractmethod
    def build_target(self) -> nn.Module:
        """The target network as it is before the first step."""

    @abstractmethod
    def compute_targets(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keyword arguments of the student that hold the targets; called without gradients, under autocast."""

    @property
    @abstractmethod
    def target_method(self) -> str | None:
        """
        Name of the one method of the target network that `compute_targets` calls; None for a target network that FSDP
        leaves whole in every process, because it has other layers than the student.
        """

    def update_target(self):
        """Called after every step of the optimiser, before `state.global_step` grows."""

    def whole_target(self) -> nn.Module:
        """The target network with all its parameters; if it is sharded a copy, and all processes must call this."""
        return self.teacher if self._sharded_target is None else self._sharded_target.whole()

    def save_target(self, folder: str, target: nn.Module):
        """Write all that `load_target` needs into `folder`, with `target` the whole target network."""
        target.save_pretrained(folder)

    def load_target(self, source: str, **hub_options):
        """Restore what `save_target` wrote, from the sub-folder `teacher` of `source`, a folder or a Hub id."""
        teacher, info = type(self.teacher).from_pretrained(
            source, subfolder=TEACHER_FOLDER, dtype=self.teacher.dtype, output_loading_info=True, **hub_options
        )
        if info["missing_keys"]:
            raise ValueError(f"{source}/{TEACHER_FOLDER} lacks {sorted(info['missing_keys'])[:3]}")
        try:
            self.teacher.load_state_dict(teacher.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{source}/{TEACHER_FOLDER} is of another model: {error}") from error

    @staticmethod
    def has_target(source: str, **hub_options) -> bool:
        """Whether there is a target network beside the model at `source`, a folder or a Hub id."""
        config = cached_file(
            source,
            "config.json",
            subfolder=TEACHER_FOLDER,
            _raise_exceptions_for_missing_entries=False,
            **hub_options,
        )
        return config is not None

    def continue_target(self, source: str, **hub_options):
        """Start from the target network beside the model at `source`, a folder or a Hub id, if there is one."""
        if self.has_target(source, **hub_options):
            self.load_target(source, **hub_options)

    def whole_student(self) -> PreTrainedModel:
        """The student with all its parameters; if it is sharded a copy, and all processes must call this."""
        student = self.accelerator.unwrap_model(self.model)
        if self._skeleton is None:
            return student
        whole = copy.deepcopy(self._skeleton)
        whole.load_state_dict(whole_state_dict(student), assign=True)
        return whole.to(self.args.device)

    @abstractmethod
    def deployable_encoder(self) -> PreTrainedModel:
        """The network that is evaluated and published."""

    def schedule_values(self, step: int) -> dict[str, float]:
        """Values of the schedules at `step`, for the logs."""
        return {"weight_decay": self.weight_decay_at(step)}

    # One step

    def epoch_of(self, step: int) -> int:
        """Index of the epoch that `step` belongs to."""
        return step // self.steps_per_epoch

    @property
    def num_epochs(self) -> int:
        """Epochs of the whole run, the last of which may be incomplete."""
        return math.ceil(self.num_steps / self.steps_per_epoch)

    def set_initial_training_values(self, args, dataloader):
        values = super().set_initial_training_values(args, dataloader)
        self.steps_per_epoch, self.num_steps = values[1], values[-1]
        self._throughput.restart()
        if self._num_images() is None:
            # Trainer takes the whole run over a stream as one epoch.
            self.steps_per_epoch = max(1, round(self.num_steps / args.num_train_epochs))
        self.check_schedules()
        return values

    def _prepare_for_training(self, *args, **kwargs):
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.is_fsdp_enabled and self.target_method is not None and self._sharded_target is None:
            self._sharded_target = ShardedTarget(self.accelerator, self.teacher, self.target_method)
            self.teacher = self._sharded_target.module
        return prepared

    def _run_epoch(self, **kwargs):
        # Resumed from its last checkpoint, Trainer would take one step too many.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)
        else:
            self.control.should_training_stop = True

    def check_schedules(self):
        """Raise `ValueError` when a schedule is longer than the run."""
        if self.warmup_steps >= self.num_steps and self.warmup_steps > 0:
            raise ValueError(
                f"the learning rate's warm-up takes {self.warmup_steps} steps, the run only {self.num_steps}: lower "
                f"warmup_epochs ({self.args.warmup_epochs:g}, of {self.steps_per_epoch} steps each) or warmup_steps"
            )

    @property
    def warmup_steps(self) -> int:
        """Steps of the learning rate's warm-up."""
        if self.args.warmup_steps > 0 or self.args.lr_scheduler_type != "cosine":
            return self.args.get_warmup_steps(self.num_steps)
        return int(self.args.warmup_epochs * self.steps_per_epoch)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.args.lr_scheduler_type != "cosine" or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        peak = self.args.learning_rate

        def factor(step: int) -> float:
            if not peak:
                return 0.0
            final = self.args.min_learning_rate
            return cosine_schedule(step, peak, final, num_training_steps, self.warmup_steps) / peak

        self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def weight_decay_at(self, step: int) -> float:
        """Weight decay of the decayed parameters at `step`."""
        end = self.args.weight_decay_end
        if end is None:
            return self.args.weight_decay
        return cosine_schedule(step, self.args.weight_decay, end, self.num_steps)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return decayed_parameter_names(model)

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
            self._step_values["grad_norm"] = norm
        return norm

    def before_step(self):
        """Called before the forward pass of every step."""

    def before_optimizer_step(self):
        """Called after the gradients are clipped: looks for values that are not finite, sets the weight decay."""
        failure = self._finite.note(self.state.global_step + 1, self._step_values)
        self._step_values = {}
        self._stop_if_not_finite(failure)
        self.optimizer.param_groups[0]["weight_decay"] = self.weight_decay_at(self.state.global_step)

    def get_train_dataloader(self):
        dataloader = super().get_train_dataloader()
        # accelerate's loader hands everything but iteration itself to the one that it wraps.
        loader = getattr(dataloader, "base_dataloader", dataloader)
        loader.worker_init_fn = partial(ignore_stop_signals, before=loader.worker_init_fn)
        return dataloader

    def _prepare_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        self._unreadable.note(inputs.pop("unreadable", []), len(inputs["pixel_values"]))
        self.normalize_inputs(inputs)
        return inputs

    def normalize_inputs(self, inputs: dict[str, Any]):
        """Called with every batch, on the device: raw (uint8) views get their colours there, and are normalised."""
        parameters, processor = inputs.pop("color_parameters", None), self.processing_class
        if inputs["pixel_values"].dtype == torch.uint8:
            if processor is None:
                raise ValueError("raw views need processing_class, the image processor, for its mean and deviation")
            # Views arrive as bytes, a quarter of the size, and get their colours where the model is.
            if parameters is None:
                views = inputs["pixel_values"]
                inputs["pixel_values"] = normalize_views(views, processor.image_mean, processor.image_std)
            else:
                color_batch(inputs, parameters, processor.image_mean, processor.image_std)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        with self._throughput.waiting(), record_function("wait for data"):
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._throughput.count(sum(len(batch["pixel_values"]) for batch in batches))
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with record_function("targets"), torch.no_grad(), self.accelerator.autocast():
            targets = self.compute_targets(inputs)
        with record_function("student"), self.accelerator.autocast():
            outputs = model(**inputs, **targets)
        for name in outputs:
            if name.startswith("loss"):
                share = outputs[name].detach() / self.current_gradient_accumulation_steps
                self._step_values[name] = self._step_values.get(name, 0.0) + share
        self.observe(targets, outputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _stop_if_not_finite(self, failure: tuple[int, dict[str, float]] | None):
        if failure is None:
            return
        step, values = failure
        figures = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        half = " fp16 overflows easily: prefer bf16 or fp32." if self.args.fp16 else ""
        raise FloatingPointError(
            f"not finite at step {step}: {figures}. The usual cause is a learning rate that is too high "
            f"(here {self.lr_scheduler.get_last_lr()[0]:.4g}) or a warm-up too short (here {self.warmup_steps} steps)."
            f"{half} {describe_last(self.args.output_dir)}"
        )

    def _num_images(self) -> int | None:
        """Training images; None for a stream, which does not tell."""
        streamed = isinstance(self.train_dataset, torch.utils.data.IterableDataset)
        return None if streamed or self.train_dataset is None else len(self.train_dataset)

    # What the logs show

    def observe(self, targets: dict[str, torch.Tensor], outputs):
        """Called with the targets and outputs of every batch: notes what the logs show of them."""
        for name, value in outputs.items():
            if name.startswith("loss_"):
                self.step_logs.add(name, value)

    def log(self, logs: dict[str, float], start_time: float | None = None):
        if "loss" in logs:
            logs.update(self.collected_logs())
        super().log(logs, start_time)

    def collected_logs(self) -> dict[str, float]:
        """What the next log shows: the steps since the last one, unreadable images, throughput, schedules."""
        logs = self.step_logs.collect() | {"data/unreadable": self._unreadable.count()}
        logs |= self._throughput.collect(self.accelerator)
        return logs | self.schedule_values(max(self.state.global_step - 1, 0))

    # Evaluation

    def _evaluate(self, *args, **kwargs):
        with self._throughput.paused():
            return super()._evaluate(*args, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        Measure on `eval_dataset` what the run is for, and log it.

        Raises:
            ValueError: If images, or labelled ones to compare them with, are missing.
        """
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if eval_dataset is None:
            raise ValueError("an evaluation needs eval_dataset")
        measured = self.measure(eval_dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def latest_evaluation(self) -> dict[str, float]:
        """The metrics of the present weights, if they have been evaluated."""
        evaluations = [entry for entry in self.state.log_history if any(name.startswith("eval_") for name in entry)]
        if not evaluations or evaluations[-1]["step"] != self.state.global_step:
            return {}
        return {name: value for name, value in evaluations[-1].items() if name.startswith("eval_")}

    def measure(self, eval_dataset) -> dict[str, float]:
        """
        What an evaluation reports; all processes call this. Here k-NN accuracy in percent of the deployable encoder:
        `eval_dataset` against `bank_dataset`.
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

    # Checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        Train, from the beginning or from a checkpoint. SIGTERM and SIGINT (Ctrl-C) end the run after the step at
        hand: it is saved, and the process exits with code 75.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint; True for the newest one in
                `output_dir`; "latest" for the newest one that is whole, or a new start where there is none at all.

        Raises:
            OSError: If the checkpoint is not whole, or (also later) one cannot be written.
            ValueError: If it belongs to another model, or to a run with other batches.
            FloatingPointError: If loss or gradient are not finite; the step is not taken.
            SystemExit: After a signal.
        """
        parts, run = self._required_parts(), self._run_facts()
        checkpoint = None
        if self.args.should_save:
            checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir, parts, run)
        if self.args.world_size > 1:
            # Over a shared file system, another process may not see yet what the first one sees.
            checkpoint = broadcast_object_list([checkpoint])[0]
            if checkpoint is not None:
                check_whole(checkpoint, parts)
        with self.stop_signals:
            result = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        if self.stop_signals.stopping:
            logger.warning(
                f"stopped by {signal.Signals(self.stop_signals.received).name} after step {self.state.global_step}. "
                f"{describe_last(self.args.output_dir)} Started again in the same way, the run goes on from there."
            )
            raise SystemExit(EXIT_INTERRUPTED)
        return result

    def _run_facts(self) -> dict[str, Any]:
        """What must be the same for a resumed run to take the steps of the one that was interrupted."""
        args = self.args
        facts = {
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "number of processes": args.world_size,
            "seed": args.seed,
            "data_seed": args.data_seed,
        }
        if self._num_images() is None:
            # Each worker reads its own shards of a stream, so that their number decides the order.
            facts["dataloader_num_workers"] = args.dataloader_num_workers
            if isinstance(self.train_dataset, StreamedViewsDataset):
                facts |= self.train_dataset.order
            return facts
        return facts | {"number of training images": self._num_images()}

    def _required_parts(self) -> tuple[str, ...]:
        # What is missing here Trainer would replace by a fresh start, without a word.
        args = self.args
        random_state = "rng_state.pth" if args.world_size == 1 else f"rng_state_{args.process_index}.pth"
        weights, optimizer = "model.safetensors", "optimizer.pt"
        if self.is_fsdp_enabled:
            weights, optimizer = "pytorch_model_fsdp_0", "optimizer_0"
        scaler = () if self.accelerator.scaler is None else ("scaler.pt",)
        return weights, optimizer, "scheduler.pt", *scaler, random_state, TRAINER_STATE_NAME, TEACHER_FOLDER

    def _finalize_training(self, *args, **kwargs):
        self._check_finite()
        # With a limit of one, Trainer would leave only the best checkpoint, not the one to go on from.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _get_output_dir(self, trial) -> str:
        return self._checkpoint_root or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial):
        self._check_finite()
        with self._throughput.paused():
            self._write_checkpoint(model, trial)

    def _check_finite(self):
        """Raise `FloatingPointError` when the last step or what it made of the weights is not finite."""
        self._stop_if_not_finite(self._finite.flush())
        parts = map(local_part, (*self.model.parameters(), *self.teacher.parameters()))
        largest = torch._foreach_norm([part for part in parts if part.numel()], ord=math.inf)
        if not self.accelerator.gather(torch.stack(largest).isfinite().all()[None]).all():
            raise FloatingPointError(
                f"weights are not finite after step {self.state.global_step}. {describe_last(self.args.output_dir)}"
            )

    def _write_checkpoint(self, model: nn.Module, trial):
        """Trainer's checkpoint, written beside its place and moved there when it is whole."""
        output_dir = Path(self.args.output_dir)
        staging = output_dir / STAGING_FOLDER
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            self._checkpoint_root = str(staging)
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if self.state.best_global_step == self.state.global_step:
                    self.state.best_model_checkpoint = str(output_dir / name)
                    self.state.save_to_json(str(staging / name / TRAINER_STATE_NAME))
                write_manifest(staging / name, self._run_facts())
                put_in_place(staging / name, output_dir / name)
                remove_old_checkpoints(output_dir, self.args.save_total_limit, self.state.best_global_step)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in FAILED_WRITES):
                raise
            raise OSError(
                f"cannot save {output_dir / name}: {error}. {describe_last(self.args.output_dir)}"
            ) from error
        finally:
            self._checkpoint_root = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None):
        """Nothing: `hf-mim pretrain` makes the repositories, and so does the first checkpoint that is uploaded."""

    def _push_from_checkpoint(self, checkpoint_folder: str):
        # Trainer would upload what is not whole yet, and the pickled options; `CheckpointUploads` does it afterwards.
        pass

    def push_to_hub(self, *args, **kwargs):
        """Raises `ValueError`: a trainer has neither the card nor the deployable encoder that are published."""
        raise ValueError(
            "a trainer alone has no result to upload: `hf-mim pretrain --push_to_hub` does it, and `hf-mim publish` "
            "for the folder of a finished run"
        )

    def _save_optimizer_and_scheduler(self, output_dir: str):
        if self.is_fsdp_enabled:
            complete_optimizer_state(self.optimizer)
        super()._save_optimizer_and_scheduler(output_dir)
        target = self.whole_target()
        if self.args.should_save:
            self.save_target(os.path.join(output_dir, TEACHER_FOLDER), target)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None):
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except RuntimeError as error:
            raise ValueError(f"{resume_from_checkpoint} is of another model: {error}") from error

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        if checkpoint is None:
            return
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            raise ValueError(f"{checkpoint}/optimizer.pt is of another model: {error}") from error
        for parameter, state in self.optimizer.state.items():
            moments = [state[name] for name in ("exp_avg", "exp_avg_sq", "momentum_buffer") if name in state]
            if any(moment is not None and moment.shape != parameter.shape for moment in moments):
                raise ValueError(f"{checkpoint}/optimizer.pt is of another model: a moment has another shape")
        self.load_target(checkpoint)

    def _issue_warnings_after_load(self, load_result):
        # Trainer only warns here, and would go on with random weights.
        if load_result.missing_keys or load_result.unexpected_keys:
            raise ValueError(
                "the checkpoint is not of this model: "
                f"missing {load_result.missing_keys[:5]}, unexpected {load_result.unexpected_keys[:5]}"
            )
