"""Arguments of transformers that must keep their values here, each with the reason, and checks of the others."""

import dataclasses
import importlib.util
import json
import math
import os
from collections.abc import Container, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.optimization import get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig


class Kept(NamedTuple):
    """
    An option of transformers that must keep its value.

    Args:
        value (`Any`): The value.
        reason (`str`): Why, as the end of a sentence.
    """

    value: Any
    reason: str


_NO_TOKENS = "pre-training on images has no text tokens"
_OWN_EVALUATION = "the evaluation is k-NN on features, or losses of a tokenizer, and gathers no predictions"

KEPT: dict[str, Kept] = {
    "auto_find_batch_size": Kept(False, "learning rate, warm-up and card follow from the batch size"),
    "average_tokens_across_devices": Kept(True, _NO_TOKENS),
    "batch_eval_metrics": Kept(False, _OWN_EVALUATION),
    "bf16_full_eval": Kept(False, "an evaluation has the precision of the training: use bf16"),
    "dataloader_in_order": Kept(True, "the order of the batches must be the same when a run is resumed"),
    "dataloader_persistent_workers": Kept(False, "it changes the random numbers of a resumed run"),
    "ddp_find_unused_parameters": Kept(False, "every parameter is used in every step"),
    "debug": Kept("", "losses, gradients and weights are checked for NaN in every step anyway"),
    "deepspeed": Kept(None, "the target network cannot be sharded by DeepSpeed: use fsdp or several processes"),
    "do_predict": Kept(False, "there are no predictions: use hf-mim evaluate"),
    "enable_jit_checkpoint": Kept(False, "SIGTERM saves a checkpoint anyway"),
    "eval_accumulation_steps": Kept(None, _OWN_EVALUATION),
    "eval_do_concat_batches": Kept(True, _OWN_EVALUATION),
    "eval_use_gather_object": Kept(False, _OWN_EVALUATION),
    "fp16_full_eval": Kept(False, "an evaluation has the precision of the training: use fp16"),
    "hub_revision": Kept(None, "a result is uploaded to the main branch"),
    "ignore_data_skip": Kept(False, "resuming must continue the run exactly"),
    "include_for_metrics": Kept([], _OWN_EVALUATION),
    "include_num_input_tokens_seen": Kept("no", _NO_TOKENS),
    "label_names": Kept(["pixel_values"], "pre-training has no labels"),
    "label_smoothing_factor": Kept(0.0, "pre-training has no labels"),
    "length_column_name": Kept("length", "images have no length"),
    "liger_kernel_config": Kept(None, "its kernels are for language models"),
    "load_best_model_at_end": Kept(
        False,
        "it would combine the best student with the last teacher. Use save_strategy best with metric_for_best_model, "
        "and pass that checkpoint to model_name_or_path",
    ),
    "logging_nan_inf_filter": Kept(False, "a loss that is not finite must show"),
    "neftune_noise_alpha": Kept(None, "it is noise for embeddings of text tokens"),
    "optim_target_modules": Kept(None, "it is for GaLore and APOLLO, which replace the groups with weight decay"),
    "parallelism_config": Kept(
        None, "tensor and context parallelism are not supported: use fsdp or several processes"
    ),
    "prediction_loss_only": Kept(True, "there is nothing to predict"),
    "remove_unused_columns": Kept(False, "the collator needs all columns"),
    "restore_callback_states_from_checkpoint": Kept(False, "resuming restores all that a run needs"),
    "save_only_model": Kept(False, "resuming must continue the run exactly"),
    "train_sampling_strategy": Kept("random", "images have no length, and each epoch shuffles them"),
    "use_cache": Kept(False, _NO_TOKENS),
    "use_liger_kernel": Kept(False, "its kernels are for language models"),
}

# Options of earlier versions of transformers, each with what to do.
FORMER: dict[str, str] = {
    "warmup_ratio": "use --warmup_epochs, or a fraction of the run as --warmup_steps 0.1",
    "group_by_length": "images have no length",
    "past_index": _NO_TOKENS,
    "predict_with_generate": "there are no predictions: use hf-mim evaluate",
    "jit_mode_eval": "use --torch_compile",
    "torchdynamo": "use --torch_compile",
    "use_ipex": "use --bf16 and --torch_compile",
    "use_mps_device": "the device is found without it",
    "no_cuda": "use --use_cpu",
    "tpu_num_cores": "TPUs are not supported",
    "tpu_metrics_debug": "TPUs are not supported",
    "logging_dir": "logs go to --output_dir",
    "overwrite_output_dir": "a new run needs an empty --output_dir, an old one continues there",
    "fp16_opt_level": "use --bf16 or --fp16",
    "fp16_backend": "use --bf16 or --fp16",
    "half_precision_backend": "use --bf16 or --fp16",
    "evaluation_strategy": "use --eval_strategy",
    "per_gpu_train_batch_size": "use --per_device_train_batch_size",
    "save_safetensors": "all weights are saved as safetensors",
    "push_to_hub_model_id": "use --hub_model_id",
    "push_to_hub_organization": "use --hub_model_id ORGANIZATION/NAME",
    "push_to_hub_token": "use --hub_token",
    "fsdp_min_num_params": "use --fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "use --fsdp_config",
    "include_tokens_per_second": _NO_TOKENS,
    "include_inputs_for_metrics": _OWN_EVALUATION,
    "split_batches": "use --per_device_train_batch_size",
    "dispatch_batches": "use --accelerator_config",
    "ray_scope": "searches of hyperparameters are not supported",
}

# Optimizers that work, each with the `optim_args` that it reads.
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adamw_torch": (),
    "adamw_torch_fused": (),
    "adafactor": (),
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
}
BITSANDBYTES = ("bnb", "8bit", "32bit", "paged", "lion", "ademamix")
# Schedules that follow a metric.
BY_METRIC = ("reduce_lr_on_plateau", "greedy")
# Arguments with the smallest and the largest value. None for no limit.
RANGES: dict[str, tuple[float, float | None]] = {
    "logging_steps": (0, None),
    "save_steps": (0, None),
    "eval_steps": (0, None),
    "eval_delay": (0, None),
    "base_learning_rate": (0, None),
    "min_learning_rate": (0, None),
    "warmup_epochs": (0, None),
    "warmup_steps": (0, None),
    "weight_decay": (0, None),
    "weight_decay_end": (0, None),
    "max_grad_norm": (0, None),
    "adam_epsilon": (0, None),
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**32 - 1),
    "ddp_timeout": (1, 10_000_000),
    "dataloader_timeout": (0, 1_000_000),
    "dataloader_prefetch_factor": (1, None),
    "torch_empty_cache_steps": (1, None),
    "ddp_bucket_cap_mb": (1, None),
}
NOT_ZERO = ("logging_steps", "save_steps", "eval_steps")
# Arguments that are mappings; from those of the second line, also a JSON file.
MAPPINGS = ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
MAPPINGS_OR_FILES = ("accelerator_config", "fsdp_config")

# Arguments of torch.utils.checkpoint.
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop", "context_fn")


def check_former(argv: Sequence[str], recipe: Mapping[str, Any], options: Container[str]) -> None:
    """
    Refuse options of earlier versions of transformers with what to do instead.

    Args:
        argv (`Sequence[str]`): Arguments after the program name.
        recipe (`Mapping[str, Any]`): Options of the recipe.
        options (`Container[str]`): Names of the options that there are.

    Raises:
        ValueError: If there is one.
    """
    given = [word.partition("=")[0][2:].replace("-", "_") for word in argv if word.startswith("--")]
    former = [name for name in (*given, *recipe) if name in FORMER and name not in options]
    if former:
        raise ValueError("; ".join(f"there is no option {name}: {FORMER[name]}" for name in dict.fromkeys(former)))


def check_kept(values: Mapping[str, Any]) -> None:
    """
    Refuse options that must keep their values, all at once.

    Args:
        values (`Mapping[str, Any]`): Values of options. Those that are not in the table are not looked at.

    Raises:
        ValueError: If one of them has another value.
    """
    wrong = [
        f"{name} must stay {_shown(kept.value)}: {kept.reason}"
        for name, kept in KEPT.items()
        if name in values and values[name] != kept.value and not _is_empty(values[name], kept.value)
    ]
    if wrong:
        raise ValueError("; ".join(wrong))


def _is_empty(value: Any, kept: Any) -> bool:
    """Return whether both stand for nothing: transformers turns None into an empty list, no into False, and back."""
    return (kept in (None, "", []) and value in (None, "", [], {})) or (kept == "no" and value is False)


def _shown(value: Any) -> str:
    if value in (None, "", []):
        return "unset"
    return " ".join(value) if isinstance(value, list) else str(value)


def check_arguments(args: Any) -> None:
    """
    Check arguments before transformers reads them, and read those that are JSON.

    Args:
        args (`TrainingArguments`): Arguments before their `__post_init__`. Mappings replace text in them.

    Raises:
        ValueError: If one of them cannot work, or would change nothing.
        OSError: If a file that one of them names cannot be read.
    """
    for name, (low, high) in RANGES.items():
        value = getattr(args, name)
        if value is None:
            continue
        if value < 0 <= low and high is None:
            raise ValueError(f"{name} must not be negative, got {value}")
        if value < low or high is not None and value > high or value == 0 and name in NOT_ZERO:
            limit = f"lie between {low} and {high}" if high is not None else f"be at least {max(low, 1)}"
            raise ValueError(f"{name} must {limit}, got {value}")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 0 and less than 1, got {getattr(args, name)}")
    for name in (*NOT_ZERO, "warmup_steps"):
        value = getattr(args, name)
        if value is not None and value > 1 and value != math.floor(value):
            raise ValueError(f"{name} must be a whole number, or a fraction of the run below 1, got {value}")
    if args.max_steps < -1 or args.max_steps == 0:
        raise ValueError(f"max_steps must be at least 1, or -1 for num_train_epochs, got {args.max_steps}")
    if _word(args.save_strategy) == "best":
        if args.metric_for_best_model is None:
            raise ValueError("save_strategy best needs metric_for_best_model, the metric that decides")
        if _word(args.eval_strategy) == "no":
            raise ValueError("save_strategy best needs evaluations to choose by: set eval_strategy to epoch or steps")
    if not args.dataloader_num_workers:
        for name in ("dataloader_prefetch_factor", "dataloader_multiprocessing_context"):
            if getattr(args, name) is not None:
                raise ValueError(f"{name} is for data-loading processes: set dataloader_num_workers to 1 or more")
    if "LOCAL_RANK" not in os.environ:
        for name in ("fsdp", "ddp_backend"):
            if getattr(args, name) not in (None, False, "", "false", "False", []):
                raise ValueError(f"{name} needs several processes: start them with `accelerate launch` or torchrun")
    if args.fsdp in ("true", "false", "True", "False"):
        args.fsdp = args.fsdp.lower() == "true" or None
    for name in (*MAPPINGS, *MAPPINGS_OR_FILES):
        setattr(args, name, read_mapping(name, getattr(args, name)))
    unknown = set(args.accelerator_config or {}) - {field.name for field in dataclasses.fields(AcceleratorConfig)}
    if unknown:
        raise ValueError(f"accelerator_config has no {', '.join(sorted(unknown))}")
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        unknown = set(getattr(args, name) or {}) - set(CHECKPOINTING)
        if unknown:
            raise ValueError(f"{name} has no {', '.join(sorted(unknown))}, only {', '.join(CHECKPOINTING)}")
    check_optimizer(_word(args.optim), args.optim_args)
    check_schedule(_word(args.lr_scheduler_type), args.lr_scheduler_kwargs)
    if args.torch_compile or args.torch_compile_backend or args.torch_compile_mode:
        check_compilation(args.torch_compile_backend, args.torch_compile_mode)


def read_mapping(name: str, value: Any) -> Any:
    """
    Return the mapping that an argument gives: itself, as JSON, or for some arguments in a JSON file.

    Raises:
        ValueError: If it is no mapping.
        OSError: If the file cannot be read.
    """
    if value is None or isinstance(value, Mapping) or dataclasses.is_dataclass(value):
        return value
    text, source = str(value), name
    if name in MAPPINGS_OR_FILES and not text.lstrip().startswith(("{", "[")):
        if not Path(text).is_file():
            raise FileNotFoundError(f"{name} must be a mapping as JSON, or a JSON file; there is no file {text}")
        text, source = Path(text).read_text(encoding="utf-8"), f"{name} {value}"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} must be JSON, such as '{{\"name\": 1}}': {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{source} must be a mapping, such as '{{\"name\": 1}}', got {type(found).__name__}")
    return found


def check_optimizer(name: str, optim_args: str | None) -> None:
    """
    Check that an optimizer works here, and reads what it is given.

    Args:
        name (`str`): Name of the optimizer.
        optim_args (`str`, *optional*): Its further arguments, `name=value` separated by commas.

    Raises:
        ValueError: If one of them does not.
    """
    known = OPTIMIZERS.get(name)
    if known is None:
        if name.startswith(("galore", "apollo")) or not any(sign in name for sign in BITSANDBYTES):
            raise ValueError(
                f"optim {name} is not supported: resuming to the bit and the groups with and without weight decay are "
                f"tested with {', '.join(OPTIMIZERS)}. Those of bitsandbytes, such as adamw_bnb_8bit, can be used, too"
            )
        if name.startswith("adamw_torch"):
            raise ValueError(f"optim {name} is not supported: use adamw_bnb_8bit of bitsandbytes, or adamw_torch")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                f"optim {name} needs the package bitsandbytes, which is not installed: pip install bitsandbytes"
            )
        return
    for entry in filter(None, (optim_args or "").replace(" ", "").split(",")):
        key, equals, value = entry.partition("=")
        if not equals or "=" in value or not value:
            raise ValueError(f"optim_args must be name=value, separated by commas, got '{entry}'")
        if key not in known:
            reads = f"only {', '.join(known)}" if known else "no optim_args: leave them out"
            raise ValueError(f"optim_args has '{key}', but {name} reads {reads}")
        if key not in ("nesterov", "centered"):
            try:
                float(value)
            except ValueError:
                raise ValueError(f"optim_args: {key} must be a number, got '{value}'") from None


def check_schedule(name: str, kwargs: Mapping[str, Any] | None) -> None:
    """
    Check that a schedule of the learning rate can be built.

    Args:
        name (`str`): Name of the schedule.
        kwargs (`Mapping`, *optional*): Its arguments.

    Raises:
        ValueError: If an argument is missing or unknown.
    """
    if name in BY_METRIC:
        raise ValueError(
            f"lr_scheduler_type {name} is not supported: it follows the losses of an evaluation, here there are k-NN "
            "accuracies. Use cosine or another schedule of the step"
        )
    if name == "cosine":
        if kwargs:
            raise ValueError(
                "lr_scheduler_kwargs is for schedules of transformers: cosine has min_learning_rate and warmup_epochs"
            )
        return
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        get_scheduler(name, optimizer, 1, 1000, scheduler_specific_kwargs=dict(kwargs or {}))
    except TypeError as error:
        reason = str(error).partition("() ")[2] or str(error)
        raise ValueError(
            f"lr_scheduler_type {name} with lr_scheduler_kwargs {dict(kwargs or {})}: {reason}"
        ) from error


def check_compilation(backend: str | None, mode: str | None) -> None:
    """Raise `ValueError` if `torch.compile` has no such back end or mode. This imports its compiler."""
    if backend is not None and backend not in torch.compiler.list_backends(exclude_tags=()):
        usual = ", ".join(("aot_eager", "eager", *torch.compiler.list_backends()))
        raise ValueError(f"torch_compile_backend must be one of {usual}, got '{backend}'")
    if mode is not None and backend in (None, "inductor"):
        modes = ["default", *torch._inductor.list_mode_options()]
        if mode not in modes:
            raise ValueError(f"torch_compile_mode must be one of {', '.join(dict.fromkeys(modes))}, got '{mode}'")


def _word(value: Any) -> str:
    return str(value.value if isinstance(value, Enum) else value)
