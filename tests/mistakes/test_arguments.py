"""Values of transformers' arguments that cannot work, or would change nothing, are one clear line before any data."""

import json

import pytest

from hf_mim.training.kept_arguments import FORMER, check_former
from tests.testing.mistakes import refusal
from tests.testing.tiny_training import SHORT, TINY


MISTAKES = [
    # intervals
    ("--logging_steps 0", "logging_steps must be at least 1, got 0"),
    ("--logging_steps -1", "logging_steps must not be negative"),
    ("--logging_steps 1.5", "logging_steps must be a whole number, or a fraction of the run below 1, got 1.5"),
    ("--save_strategy steps --save_steps 0", "save_steps must be at least 1, got 0"),
    ("--save_strategy steps --save_steps 2.5", "save_steps must be a whole number"),
    ("--eval_strategy steps --eval_steps 0", "eval_steps must be at least 1, got 0"),
    ("--eval_strategy steps --eval_delay -2", "eval_delay must not be negative"),
    ("--warmup_steps 1.5", "warmup_steps must be a whole number, or a fraction of the run below 1, got 1.5"),
    ("--max_steps 0", "max_steps must be at least 1, or -1 for num_train_epochs, got 0"),
    ("--max_steps -5", "max_steps must be at least 1, or -1 for num_train_epochs, got -5"),
    # numbers
    ("--adam_beta1 1", "adam_beta1 must be at least 0 and less than 1, got 1.0"),
    ("--adam_beta2 -0.5", "adam_beta2 must be at least 0 and less than 1, got -0.5"),
    ("--adam_epsilon -1", "adam_epsilon must not be negative"),
    ("--weight_decay_end -1", "weight_decay_end must not be negative"),
    ("--base_learning_rate -1", "base_learning_rate must not be negative"),
    ("--seed -1", "seed must lie between 0 and 4294967295, got -1"),
    (f"--data_seed {2**70}", "data_seed must lie between 0 and 4294967295"),
    ("--ddp_timeout 0", "ddp_timeout must lie between 1 and 10000000, got 0"),
    ("--ddp_bucket_cap_mb 0", "ddp_bucket_cap_mb must be at least 1, got 0"),
    ("--dataloader_timeout 1e30", "dataloader_timeout must lie between 0 and 1000000, got 1e+30"),
    ("--torch_empty_cache_steps 0", "torch_empty_cache_steps must be at least 1, got 0"),
    # data-loading processes
    ("--dataloader_num_workers 1 --dataloader_prefetch_factor 0", "dataloader_prefetch_factor must be at least 1"),
    ("--dataloader_prefetch_factor 2", "dataloader_prefetch_factor is for data-loading processes"),
    ("--dataloader_multiprocessing_context spawn", "dataloader_multiprocessing_context is for data-loading processes"),
    # optimizers
    ("--optim adamw_bnb_8bit", "optim adamw_bnb_8bit needs the package bitsandbytes, which is not installed: pip"),
    ("--optim paged_lion_8bit", "needs the package bitsandbytes"),
    ("--optim galore_adamw_8bit", "optim galore_adamw_8bit is not supported: resuming to the bit"),
    ("--optim lomo", "optim lomo is not supported"),
    ("--optim schedule_free_sgd", "optim schedule_free_sgd is not supported"),
    ("--optim adamw_torch_8bit", "optim adamw_torch_8bit is not supported: use adamw_bnb_8bit"),
    ("--optim sgd --optim_args momentum", "optim_args must be name=value, separated by commas, got 'momentum'"),
    ("--optim sgd --optim_args momentum=a=b", "optim_args must be name=value"),
    ("--optim sgd --optim_args momentum=high", "optim_args: momentum must be a number, got 'high'"),
    ("--optim sgd --optim_args eps=1", "optim_args has 'eps', but sgd reads only momentum, dampening, nesterov"),
    ("--optim adamw_torch --optim_args eps=1", "optim_args has 'eps', but adamw_torch reads no optim_args"),
    # schedules
    ("--lr_scheduler_type reduce_lr_on_plateau", "lr_scheduler_type reduce_lr_on_plateau is not supported"),
    ("--lr_scheduler_type warmup_stable_decay", "missing 1 required positional argument: 'num_decay_steps'"),
    ("--lr_scheduler_type cosine_with_min_lr", "One of min_lr or min_lr_rate should be set"),
    ('--lr_scheduler_kwargs {"power":2}', "lr_scheduler_kwargs is for schedules of transformers: cosine has"),
    ('--lr_scheduler_type linear --lr_scheduler_kwargs {"power":2}', "unexpected keyword argument 'power'"),
    ("--lr_scheduler_type polynomial --lr_scheduler_kwargs {", "lr_scheduler_kwargs must be JSON, such as"),
    ("--lr_scheduler_type polynomial --lr_scheduler_kwargs [1]", "lr_scheduler_kwargs must be a mapping, such as"),
    # machines
    ("--accelerator_config nowhere.json", "accelerator_config must be a mapping as JSON, or a JSON file; there is"),
    ('--accelerator_config {"batches":1}', "accelerator_config has no batches"),
    ("--fsdp_config {", "fsdp_config must be JSON"),
    ("--fsdp", "fsdp needs several processes: start them with `accelerate launch` or torchrun"),
    ("--ddp_backend gloo", "ddp_backend needs several processes"),
    ("--torch_compile_backend tensorrt", "torch_compile_backend must be one of aot_eager, eager, "),
    ("--torch_compile --torch_compile_mode fast", "torch_compile_mode must be one of default"),
    ('--activation_checkpointing_kwargs {"reentrant":true}', "activation_checkpointing_kwargs has no reentrant"),
    # saving
    ("--save_strategy best", "save_strategy best needs metric_for_best_model"),
    ("--save_strategy best --metric_for_best_model knn_3_top1", "save_strategy best needs evaluations to choose by"),
    ("--load_best_model_at_end", "load_best_model_at_end must stay False: it would combine the best student with"),
    # earlier versions of transformers
    ("--warmup_ratio 0.1", "there is no option warmup_ratio: use --warmup_epochs, or a fraction"),
    ("--group-by-length=true --past_index 1", "group_by_length: images have no length; there is no option past_index"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_values_that_cannot_work(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    # The folder has no images: they are not looked at.
    common = (*TINY, *SHORT, "--train_dir", tmp_path, "--output_dir", tmp_path / "run")
    assert message in refusal(capsys, "pretrain", *common, *options.split())
    assert not (tmp_path / "run").exists()


def test_files_with_options(tmp_path, capsys):
    file = tmp_path / "config.json"
    common = (*TINY, *SHORT, "--train_dir", tmp_path, "--output_dir", tmp_path / "run")
    file.write_text("[1, 2]")
    line = refusal(capsys, "pretrain", *common, "--accelerator_config", file)
    assert line.startswith(f"accelerator_config {file} must be a mapping, such as ")
    file.write_text(json.dumps({"split_batches": True}))
    line = refusal(capsys, "pretrain", *common, "--accelerator_config", file)
    assert line.startswith("accelerator_config: split_batches must stay false")


def test_former_options_of_recipes(tmp_path, capsys):
    (tmp_path / "own.yaml").write_text("warmup_ratio: 0.1\n")
    line = refusal(capsys, "pretrain", tmp_path / "own.yaml", "--train_dir", tmp_path)
    assert line.startswith("there is no option warmup_ratio: ")


def test_an_option_that_transformers_has_again_is_not_former():
    check_former(["--past_index", "1"], {}, set(FORMER))
