"""Options of transformers: each one works, or is refused in one line with its reason."""

import json
import os

import pytest
import torch
from transformers import TrainingArguments

from hf_mim.training.kept_arguments import KEPT, check_kept
from hf_mim.training.pretrain.option_table import OPTIONS
from hf_mim.training.run_pretrain import parse_arguments
from tests.testing.mistakes import refusal
from tests.testing.tiny_training import SHORT, TINY, pretrain


# Another value for each option that must keep its own.
CHANGED = {
    "average_tokens_across_devices": ("false",),
    "dataloader_in_order": ("false",),
    "ddp_find_unused_parameters": ("true",),
    "debug": ("underflow_overflow",),
    "deepspeed": ("zero3.json",),
    "eval_accumulation_steps": ("2",),
    "eval_do_concat_batches": ("false",),
    "hub_revision": ("v1",),
    "include_for_metrics": ("loss",),
    "label_names": ("label",),
    "label_smoothing_factor": ("0.1",),
    "length_column_name": ("size",),
    "neftune_noise_alpha": ("5",),
    "optim_target_modules": ("attn",),
    "prediction_loss_only": ("false",),
    "train_sampling_strategy": ("sequential",),
}


@pytest.mark.parametrize("name", sorted(KEPT.keys() - {"parallelism_config", "liger_kernel_config"}))
def test_refused_options(capsys, tmp_path, name):
    value = CHANGED.get(name, ("true",))
    options = ("--train_dir", tmp_path, "--output_dir", tmp_path / "run", f"--{name}", *value)
    line = refusal(capsys, "pretrain", *TINY, *options)
    assert line.startswith(f"{name} must stay ") and line.endswith(KEPT[name].reason)


def test_all_of_them_in_one_line(capsys, tmp_path):
    options = (
        "--train_dir",
        tmp_path,
        "--output_dir",
        tmp_path,
        "--auto_find_batch_size",
        "--label_smoothing_factor",
        "1",
    )
    line = refusal(capsys, "pretrain", *TINY, *options)
    assert line == (
        "auto_find_batch_size must stay False: learning rate, warm-up and card follow from the batch size; "
        "label_smoothing_factor must stay 0.0: pre-training has no labels"
    )


def test_batches_split_among_processes_are_refused(capsys, tmp_path):
    options = ("--train_dir", tmp_path, "--output_dir", tmp_path, "--accelerator_config", '{"split_batches": true}')
    assert "accelerator_config: split_batches must stay false" in refusal(capsys, "pretrain", *TINY, *options)


# Options that no other test of a run uses, together in a few runs.
RUNS = {
    "optimizers": ("--optim", "rmsprop", "--optim_args", "alpha=0.9,centered=true"),
    "sgd": ("--optim", "sgd", "--optim_args", "momentum=0.9,nesterov=true"),
    "adafactor": ("--optim", "adafactor"),
    "adagrad": ("--optim", "adagrad", "--optim_args", "eps=1e-6"),
    "adam": ("--optim", "adamw_torch", "--adam_beta1", "0.8", "--adam_beta2", "0.99", "--adam_epsilon", "1e-6"),
    "stable": ("--lr_scheduler_type", "warmup_stable_decay", "--lr_scheduler_kwargs", '{"num_decay_steps": 1}'),
    "schedules": (
        "--lr_scheduler_type",
        "polynomial",
        "--lr_scheduler_kwargs",
        '{"power": 2.0}',
        "--warmup_steps",
        "0.25",
    ),
    "loaders": (
        *("--dataloader_num_workers", "1", "--dataloader_prefetch_factor", "3", "--dataloader_pin_memory", "true"),
        *("--dataloader_drop_last", "false", "--dataloader_multiprocessing_context", "fork", "--data_seed", "3"),
        *("--accelerator_config", '{"even_batches": false}'),
    ),
    "logs": (
        *(
            "--logging_strategy",
            "epoch",
            "--logging_first_step",
            "--log_level",
            "info",
            "--log_level_replica",
            "error",
        ),
        *("--log_on_each_node", "false", "--skip_memory_metrics", "false", "--run_name", "a", "--project", "b"),
        *("--trackio_space_id", "c/d", "--trackio_bucket_id", "c/e", "--trackio_static_space_id", "c/f", "--do_eval"),
    ),
    "saving": (
        *("--eval_split", "test", "--eval_strategy", "steps", "--eval_steps", "1", "--eval_delay", "1"),
        *("--save_strategy", "best", "--metric_for_best_model", "knn_3_top1", "--greater_is_better", "true"),
        *("--save_on_each_node", "true", "--save_total_limit", "2"),
    ),
    "memory": (
        *("--activation_checkpointing", "--torch_empty_cache_steps", "1", "--full_determinism"),
        *("--activation_checkpointing_kwargs", '{"use_reentrant": false}', "--ddp_timeout", "60", "--tf32", "false"),
    ),
    "checkpointing": ("--gradient_checkpointing", "--gradient_checkpointing_kwargs", '{"use_reentrant": false}'),
}


@pytest.mark.parametrize("name", RUNS)
def test_working_options(pictures, tmp_path, name, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    options = [*RUNS[name]]
    output = tmp_path / "run"
    try:
        pretrain("--train_dir", pictures, "--max_steps", "4", *SHORT, *options, output=output)
    finally:
        torch.use_deterministic_algorithms(False)
    facts = json.loads((output / "metrics.json").read_text())
    assert facts["steps"] == 4 and facts["final_loss"] > 0
    state = [path.name for path in output.iterdir()]
    if name == "saving":
        assert any(entry.startswith("checkpoint-") for entry in state)


def test_the_smallest_prefetch_and_checkpointing_change_no_number(pictures, tmp_path):
    plain, other = tmp_path / "plain", tmp_path / "other"
    common = ("--train_dir", pictures, "--max_steps", "3", *SHORT)
    pretrain(*common, output=plain)
    pretrain(*common, "--activation_checkpointing", "--dataloader_num_workers", "1", output=other)
    losses = [json.loads((output / "metrics.json").read_text())["final_loss"] for output in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_learning_rate_follows_the_batch_that_is_used(pictures, tmp_path):
    """The rule is for 256 images: of one process, with its accumulated batches."""
    options = [word for word in TINY if word not in ("--learning_rate", "0.003")]
    options += ["--train_dir", str(pictures), "--max_steps", "1", *SHORT, "--lr_scheduler_type", "constant"]
    options += ["--base_learning_rate", "0.64", "--gradient_accumulation_steps", "2", "--output_dir", str(tmp_path)]
    assert parse_arguments(options).args.learning_rate == pytest.approx(0.64 * 4 * 2 / 256)


def test_options_that_a_command_line_cannot_give():
    for values in ({"parallelism_config": object()}, {"liger_kernel_config": {"rope": True}}):
        [name] = values
        with pytest.raises(ValueError, match=f"{name} must stay unset: "):
            check_kept(values)


def test_workers_follow_the_cores(pictures, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    (tmp_path / "own.yaml").write_text("dataloader_num_workers: 10\n")
    options = ["--train_dir", str(pictures), *SHORT]
    assert parse_arguments([str(tmp_path / "own.yaml"), *options]).args.dataloader_num_workers == 3
    for given in (["--dataloader_num_workers", "7"], ["--dataloader-num-workers=7"]):
        run = parse_arguments([str(tmp_path / "own.yaml"), *options, *given])
        assert run.args.dataloader_num_workers == 7
        assert "7 data-loading processes share 3 cores" in run.notes[-1]


def test_no_option_is_both():
    fields = set(TrainingArguments.__dataclass_fields__)
    assert fields >= KEPT.keys() and not KEPT.keys() & {name for names in OPTIONS.values() for name in names}
