"""
Every option of `hf-mim pretrain` and the group under which it is listed.

`docs/options.md` and `--help` are made from this table and from that of the arguments that must keep their values.
"""

import dataclasses

from transformers import TrainingArguments

from ..kept_arguments import KEPT


METHOD, MODEL, DATA, SCHEDULE = "Method", "Model", "Data", "Schedule and optimizer"
EVALUATION, SAVING, HARDWARE, HUB = "Evaluation and logs", "Saving and resuming", "Hardware", "Hub"
OTHERS = "Other options of transformers"
GROUPS = (METHOD, MODEL, DATA, SCHEDULE, EVALUATION, SAVING, HARDWARE, HUB, OTHERS)

# Options by group. Those of a method alone are not listed: they make the first group.
OPTIONS: dict[str, tuple[str, ...]] = {
    MODEL: (
        *("model_type", "model_name_or_path", "config_overrides", "image_size", "patch_size", "attn_implementation"),
        *("model_license", "cache_dir", "model_revision", "token"),
    ),
    DATA: (
        *("train_dir", "dataset_name", "dataset_config_name", "train_split", "image_column_name"),
        *("label_column_name", "clean_list", "max_train_samples", "max_unreadable_fraction", "value_range"),
        *("outside_paths", "streaming", "shuffle_buffer_size", "image_mean", "image_std", "data_license"),
    ),
    SCHEDULE: (
        *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("base_learning_rate", "learning_rate", "min_learning_rate", "warmup_epochs", "warmup_steps"),
        *("fit_schedules", "lr_scheduler_type", "lr_scheduler_kwargs", "weight_decay", "weight_decay_end"),
        *("max_grad_norm", "grad_clip", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
        *("seed", "data_seed", "full_determinism"),
    ),
    EVALUATION: (
        *("eval_strategy", "eval_steps", "eval_on_start", "eval_delay", "validation_dir", "eval_split"),
        *("train_val_split", "max_eval_samples", "max_bank_samples", "per_device_eval_batch_size", "resize_size"),
        *("knn_k", "knn_temperature", "knn_pooling", "raw_pixel_baseline", "do_train", "do_eval"),
        *("logging_strategy", "logging_steps", "logging_first_step", "report_to", "run_name", "disable_tqdm"),
        *("profile", "log_level", "log_level_replica", "log_on_each_node", "skip_memory_metrics", "project"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    ),
    SAVING: (
        *("output_dir", "resume_from_checkpoint", "save_strategy", "save_steps", "save_total_limit"),
        *("metric_for_best_model", "greater_is_better", "save_on_each_node"),
    ),
    HARDWARE: (
        *("bf16", "fp16", "tf32", "use_cpu", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
        *("gradient_checkpointing_kwargs", "torch_empty_cache_steps", "dataloader_num_workers"),
        *("dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
        *("dataloader_drop_last", "dataloader_timeout", "accelerator_config", "fsdp", "fsdp_config"),
        *("ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
        *("ddp_static_graph", "local_rank"),
    ),
    HUB: (*("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_token", "hub_always_push"),),
}

# Options that the short help lists, beside those of the method.
COMMON = frozenset(
    (
        *("model_name_or_path", "config_overrides", "image_size", "patch_size"),
        *("train_dir", "dataset_name", "label_column_name", "value_range", "clean_list"),
        *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("learning_rate", "warmup_epochs", "fit_schedules", "seed"),
        *("eval_strategy", "eval_split", "validation_dir", "train_val_split", "logging_steps", "report_to"),
        *("output_dir", "resume_from_checkpoint", "save_steps", "save_total_limit"),
        *("bf16", "torch_compile", "activation_checkpointing", "dataloader_num_workers", "use_cpu"),
        *("push_to_hub", "hub_model_id"),
    )
)

# Help that says what an option does here, in place of transformers'.
HELP: dict[str, str] = {
    "output_dir": "Folder of the results. By default runs/ and the name of the recipe.",
    "resume_from_checkpoint": "'latest' for the newest whole checkpoint in --output_dir, or the folder of one. By "
    "default the newest.",
    "num_train_epochs": "Number of epochs.",
    "max_steps": "Number of steps. Overrides --num_train_epochs.",
    "do_eval": "No effect: an evaluation follows from the evaluation images and --eval_strategy.",
    "do_train": "False evaluates the model of --model_name_or_path and does not train.",
    "use_cpu": "Train on the CPU even if there is a GPU.",
    "metric_for_best_model": "Metric by which --save_strategy best selects the checkpoint, such as knn_20_top1.",
    "eval_on_start": "Also evaluate before the first step, for the verdict of the run.",
    "seed": "Seed of all random numbers.",
    "report_to": "Where to log to: none, tensorboard, wandb, trackio, mlflow and others; needs their packages.",
    "optim": "Optimizer: adamw_torch, adamw_torch_fused, adafactor, sgd, adagrad, rmsprop, or one of bitsandbytes "
    "such as adamw_bnb_8bit. Others are refused.",
    "optim_args": "Arguments of sgd (momentum, dampening, nesterov), adagrad (lr_decay, eps) or rmsprop (momentum, "
    "alpha, eps, centered), as name=value separated by commas.",
    "lr_scheduler_kwargs": "Arguments of a schedule of transformers as JSON. 'cosine' has none.",
    "run_name": "Name of the run in the logs.",
}


def group_of(name: str) -> str:
    """Return the group of an option; those in no list belong to the method, or to transformers if it has them."""
    for group, names in OPTIONS.items():
        if name in names:
            return group
    return OTHERS if name in TrainingArguments.__dataclass_fields__ else METHOD


def options_of(*dataclass_types: type) -> dict[str, dict[str, dataclasses.Field]]:
    """Return the fields of dataclasses that are options and may be changed, by name and group, in order."""
    fields = {field.name: field for cls in dataclass_types for field in dataclasses.fields(cls) if field.init}
    by_group: dict[str, dict[str, dataclasses.Field]] = {group: {} for group in GROUPS}
    # Within a group in the order of the table.
    listed = [name for names in OPTIONS.values() for name in names if name in fields]
    for name in dict.fromkeys((*listed, *fields)):
        if name not in KEPT:
            by_group[group_of(name)][name] = fields[name]
    return {group: options for group, options in by_group.items() if options}
