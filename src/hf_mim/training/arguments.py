"""Training arguments of all methods."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import HubStrategy
from transformers.utils import is_torch_bf16_gpu_available

from ..hub.publish_checks import check_repo_id
from .kept_arguments import check_arguments, check_kept


def cpu_has_bfloat16() -> bool:
    """Return whether the processor has instructions for bfloat16, or AVX-512, which emulates them well."""
    supported: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


@dataclass
class MIMTrainingArguments(TrainingArguments):
    r"""
    Arguments of [`MIMTrainer`]: those of transformers' `TrainingArguments`, with defaults for pre-training, and the
    following ones.

    One epoch of a schedule is one pass over the data. A stream has no known length. An epoch of a stream is
    `max_steps / num_train_epochs` steps.

    > Parameters that control the optimization

    Args:
        base_learning_rate (`float`, defaults to 5e-4): Peak learning rate for a total batch of 256; the peak is
            `base_learning_rate · total batch / 256`.
        learning_rate (`float`, *optional*): Peak learning rate. Overrides `base_learning_rate`.
        min_learning_rate (`float`, defaults to 1e-6): Learning rate that the cosine approaches.
        warmup_epochs (`float`, defaults to 10): Number of epochs of linear warm-up from 0. Overridden by
            `warmup_steps`.
        lr_scheduler_type (`str`, defaults to `"cosine"`): `"cosine"` is the warm-up and cosine of the original code.
            Any other name is a schedule of transformers, with `warmup_steps`.
        weight_decay (`float`, defaults to 0.04): Initial weight decay. Biases and 1-dimensional tensors have none.
        weight_decay_end (`float`, *optional*): Weight decay that a cosine approaches. Constant by default.
        grad_clip (`"per_tensor"` or `"global"`, defaults to `"per_tensor"`): Whether `max_grad_norm` limits the norm
            of each gradient tensor, as in the original code, or the norm of all gradients together.
        max_grad_norm (`float`, defaults to 3.0): Maximum gradient norm. 0 disables clipping.

    > Parameters that control the evaluation during training

        knn_k (`list[int]`, defaults to `[10, 20]`): Numbers of neighbors of the k-NN evaluation, which runs as
            `eval_strategy` specifies if there is an evaluation dataset with labels.
        knn_temperature (`float`, defaults to 0.07): Temperature of the neighbors' votes.
        knn_pooling (`"cls"` or `"mean"`, defaults to `"cls"`): Feature of the k-NN evaluation: CLS token, or mean of
            the patches.

    > Parameters that control profiling

        fit_schedules (`bool`, defaults to `False`): Shorten warm-ups (to a tenth of the run, those of teacher
            temperatures to three tenths) and dBOT's stages if they are longer than the run. By default, this is an
            error.
        profile (`bool`, defaults to `False`): Write a trace of a few steps and a table of their slowest operators into
            `output_dir/profile/`.

    > Parameters that control what `hf-mim pretrain` uploads

        push_to_hub (`bool`, defaults to `False`): Publish the result of the finished run, like
            `hf-mim publish OUTPUT_DIR HUB_MODEL_ID --full`. The repositories are created before the first step.
        hub_model_id (`str`, *optional*): Repository of the encoder, `"organization/name"` or `"user/name"`. The
            repository of the full model has the suffix `-pretrain`. Required by `push_to_hub`.
        hub_strategy (`"end"` or `"checkpoint"`, defaults to `"end"`): `"checkpoint"` also uploads the newest
            checkpoint in the background, as `last-checkpoint/` of the full model's repository, where the result
            replaces it. Once downloaded, it can be passed to `--resume_from_checkpoint`. Its states of optimizer and
            random number generators are pickles, which are loaded without running code.
        hub_always_push (`bool`, defaults to `False`): Upload every checkpoint. By default, a checkpoint is skipped if
            a newer one is saved before the upload of an earlier one has finished.
        hub_private_repo (`bool`, *optional*): Create private (or public) repositories. By default, the setting of the
            organization applies.
        hub_token (`str`, *optional*): Access token for the Hub. By default, the token of `hf auth login` or
            `HF_TOKEN`.

    > Parameters that control the reading of images

        dataloader_timeout (`float`, defaults to 900): Number of seconds without a batch from the data-loading
            processes after which the run ends. 0 for no limit.
        max_unreadable_fraction (`float`, defaults to 0.01): Maximum fraction of unreadable images, which are replaced
            by others. The run stops if there are more. For a stream, the fraction of the images read so far, or of
            1,000 if fewer were read.
    """

    base_learning_rate: float = field(
        default=5e-4, metadata={"help": "Peak learning rate for a total batch of 256 images."}
    )
    learning_rate: float | None = field(  # type: ignore[assignment]  # __post_init__ replaces None by a number
        default=None, metadata={"help": "Peak learning rate. Overrides --base_learning_rate."}
    )
    min_learning_rate: float = field(
        default=1e-6, metadata={"help": "Learning rate that the cosine schedule approaches."}
    )
    warmup_epochs: float = field(
        default=10.0, metadata={"help": "Number of epochs of linear warm-up. Overridden by --warmup_steps."}
    )
    lr_scheduler_type: str = field(
        default="cosine",
        metadata={"help": "'cosine' is the schedule of the original code. Other names are schedules of transformers."},
    )
    weight_decay: float = field(default=0.04, metadata={"help": "Weight decay at the start of training."})
    weight_decay_end: float | None = field(
        default=None, metadata={"help": "Weight decay that a cosine approaches. Constant by default."}
    )
    grad_clip: Literal["per_tensor", "global"] = field(
        default="per_tensor",
        metadata={"help": "Whether --max_grad_norm limits each gradient tensor, or all gradients together."},
    )
    max_grad_norm: float = field(default=3.0, metadata={"help": "Maximum gradient norm. 0 disables clipping."})
    knn_k: list[int] = field(
        default_factory=lambda: [10, 20], metadata={"help": "Numbers of neighbors of the k-NN evaluation."}
    )
    knn_temperature: float = field(default=0.07, metadata={"help": "Temperature of the neighbors' votes."})
    knn_pooling: Literal["cls", "mean"] = field(
        default="cls", metadata={"help": "Feature of the k-NN evaluation: CLS token, or mean of the patches."}
    )
    fit_schedules: bool = field(
        default=False,
        metadata={"help": "Shorten warm-ups and stages that are longer than the run, in place of an error."},
    )
    profile: bool = field(
        default=False, metadata={"help": "Write a trace of a few steps and their slowest operators into profile/."}
    )

    dataloader_timeout: float = field(
        default=900.0,
        metadata={"help": "Seconds without a batch from the data-loading processes that end the run. 0: no limit."},
    )
    max_unreadable_fraction: float = field(
        default=0.01,
        metadata={"help": "Maximum fraction of unreadable images, which are replaced by others."},
    )

    push_to_hub: bool = field(
        default=False, metadata={"help": "Publish the result of the finished run, like `hf-mim publish`."}
    )
    hub_model_id: str | None = field(
        default=None,
        metadata={"help": "Repository of the encoder, ORG/NAME. The full model goes to ORG/NAME-pretrain."},
    )
    hub_strategy: HubStrategy | str = field(
        default="end",
        metadata={"help": "'end' uploads the result, 'checkpoint' also the newest checkpoint during training."},
    )
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Create private (or public) repositories."})

    # Defaults of transformers that do not suit pre-training
    do_train: bool = field(default=True, metadata={"help": "Whether to run training."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Keep False: the collator needs all columns."}
    )
    prediction_loss_only: bool = field(default=True, metadata={"help": "Keep True: there is nothing to predict."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["pixel_values"], metadata={"help": "Keep: pre-training has no labels."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Keep False: every parameter is used in every step."}
    )
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last incomplete batch."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Keep False: a loss that is not finite must show."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Number of steps between logs."})

    def __post_init__(self):
        check_kept(vars(self))
        check_arguments(self)
        if self.learning_rate is None:
            # The parent class requires a number. It also determines the devices, and thereby the total batch.
            self.learning_rate = 0.0
            by_rule = True
        else:
            by_rule = False
        if self.accelerator_config is None or isinstance(self.accelerator_config, dict):
            # By default, the first process would make the views of a stream for all processes.
            self.accelerator_config = {"dispatch_batches": False} | (self.accelerator_config or {})
        self._check_precision()
        super().__post_init__()
        assert isinstance(self.accelerator_config, AcceleratorConfig)
        if self.accelerator_config.split_batches:
            raise ValueError(
                "accelerator_config: split_batches must stay false: learning rate, warm-up and card follow from "
                "per_device_train_batch_size, which would become the batch of all processes"
            )
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        elif self.dataloader_pin_memory:
            # By default, the host would wait for the device at every batch.
            self.accelerator_config.non_blocking = True
        if by_rule:
            total_batch = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
            self.learning_rate = self.base_learning_rate * total_batch / 256
        if self.grad_clip not in ("per_tensor", "global"):
            raise ValueError(f"grad_clip must be 'per_tensor' or 'global', got {self.grad_clip!r}")
        if not self.knn_k or min(self.knn_k) < 1:
            raise ValueError(f"knn_k must be numbers of neighbors of at least 1, got {self.knn_k}")
        if self.knn_temperature <= 0:
            raise ValueError(f"knn_temperature must be positive, got {self.knn_temperature}")
        if self.knn_pooling not in ("cls", "mean"):
            raise ValueError(f"knn_pooling must be 'cls' or 'mean', got {self.knn_pooling!r}")
        if not 0 <= self.max_unreadable_fraction <= 1:
            raise ValueError(f"max_unreadable_fraction must lie in [0, 1], got {self.max_unreadable_fraction}")
        names = self.evaluation_metrics
        if self.metric_for_best_model is not None and self.metric_for_best_model.removeprefix("eval_") not in names:
            raise ValueError(
                f"metric_for_best_model must be one of {', '.join(names)}, got {self.metric_for_best_model!r}"
            )
        if self.push_to_hub:
            self._check_hub_options()
        if self.n_gpu > 1:
            raise ValueError(
                f"one process sees {self.n_gpu} GPUs: start one process per GPU with `accelerate launch` or torchrun, "
                "or hide the others with CUDA_VISIBLE_DEVICES=0"
            )

    def _check_precision(self) -> None:
        if torch.accelerator.is_available() and not self.use_cpu:
            if self.bf16 and not is_torch_bf16_gpu_available():
                raise ValueError("this accelerator has no bfloat16: leave out --bf16, or use --fp16")
            return
        if self.fp16:
            raise ValueError("fp16 needs a GPU: on a CPU, use --bf16, or leave both out")
        if self.tf32:
            raise ValueError("tf32 is a format of NVIDIA GPUs: leave out --tf32 on a CPU")
        if self.bf16:
            if not cpu_has_bfloat16():
                raise ValueError("this processor has no bfloat16, which would make training slower: leave out --bf16")
            # Otherwise transformers asks for this option.
            self.use_cpu = True

    def _check_hub_options(self) -> None:
        if self.hub_model_id is None:
            raise ValueError("push_to_hub needs the repository: --hub_model_id ORGANIZATION/NAME or USER/NAME")
        check_repo_id(self.hub_model_id)
        check_repo_id(f"{self.hub_model_id}-pretrain")
        if self.hub_strategy not in (HubStrategy.END, HubStrategy.CHECKPOINT):
            raise ValueError(
                f"hub_strategy must be 'end' or 'checkpoint', got {HubStrategy(self.hub_strategy).value!r}: the "
                "encoder is published when the run is finished, and only the newest checkpoint is kept"
            )

    @property
    def evaluation_metrics(self) -> list[str]:
        """Names of the metrics of an evaluation, by which the best checkpoint can be selected."""
        return [f"knn_{k}_top{n}" for k in self.knn_k for n in (1, 5)]
