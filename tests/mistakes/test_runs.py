"""What the machine does not allow is one line of `hf-mim pretrain`, before any data are read."""

import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import hf_mim_cli
from hf_mim.training import arguments, run_pretrain
from hf_mim.training.pretrain import machine
from hf_mim.utils import run_lock as locks
from tests.testing.mistakes import refusal
from tests.testing.tiny_training import TINY


OPTIONS = tuple(option for option in TINY if option != "--use_cpu")


def too_late(*args, **kwargs):
    """No mistake of the user, so that the command line does not catch it."""
    raise AssertionError("too late")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Sixteen noisy pictures."""
    root = tmp_path_factory.mktemp("pictures")
    for index in range(16):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{index}.png")
    return root


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """The message of a run that reads no data."""
    monkeypatch.setattr(run_pretrain, "load_data", too_late)

    def refused(*options, output=tmp_path / "run"):
        return refusal(capsys, "pretrain", *OPTIONS, "--train_dir", tmp_path, "--output_dir", output, *options)

    yield refused
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--report_to wandb", "--report_to wandb needs the package wandb, which is not installed: pip install wandb"),
        ("--report_to trackio", "pip install trackio"),
        ("--report_to mlflow", "pip install mlflow"),
        ("--report_to tensorboard", "pip install tensorboard"),
        ("--report_to comet_ml", "pip install comet-ml"),
        ("--report_to azure_ml", "pip install azureml-sdk"),
        ("--report_to clearml", "pip install clearml"),
        ("--report_to kubeflow", "needs the environment variable KUBEFLOW_TRAINER_SERVER_URL"),
        (
            "--optim adamw_bnb_8bit",
            "optim adamw_bnb_8bit needs the package bitsandbytes, which is not installed: pip",
        ),
        ("--optim lion_32bit", "pip install bitsandbytes"),
        ("--report_to wandbb", "report_to must be none or among"),
        ("--fp16", "fp16 needs a GPU: on a CPU, use --bf16, or leave both out"),
        ("--fp16 --use_cpu", "fp16 needs a GPU"),
        ("--tf32 true", "tf32 is a format of NVIDIA GPUs"),
        ("--bf16", "this processor has no bfloat16"),
        ("--bf16 --use_cpu", "this processor has no bfloat16"),
        ("--dataloader_timeout -1", "dataloader_timeout must lie between 0 and"),
    ],
)
def test_what_is_not_there_is_named(refused, monkeypatch, options, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(arguments, "cpu_has_bfloat16", lambda: False)
    assert message in refused(*options.split())


@pytest.mark.parametrize("output", ["file", "file/below/run", "/proc/run", "/dev/null", "/dev/null/run"])
def test_an_output_folder_that_cannot_be_written_to(refused, tmp_path, output):
    (tmp_path / "file").write_text("text")
    message = refused(output=tmp_path / output)
    assert message.startswith(f"cannot write to output_dir {tmp_path / output}: ")
    assert message.endswith("Choose another --output_dir") and (tmp_path / "file").read_text() == "text"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(refused, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "Permission denied" in refused(output=tmp_path / "locked" / "run")
    assert "Permission denied" in refused(output=tmp_path / "locked")


OTHER_RUN = """
import sys
from hf_mim.utils.run_lock import run_lock
with run_lock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_run(tmp_path):
    """Another process that writes to `output`, until its stdin is closed."""
    command = [sys.executable, "-c", OTHER_RUN, str(tmp_path / "output")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_two_runs_in_one_folder(refused, tmp_path, other_run):
    message = refused(output=tmp_path / "output")
    assert f"another run writes to output_dir {tmp_path / 'output'} (process {other_run.pid} on " in message
    facts = json.loads((tmp_path / "output" / locks.LOCK_FILE).read_text())
    assert f"started {facts['started']})" in message
    # The lock ends with its process, however that ends.
    other_run.kill()
    other_run.wait()
    with pytest.raises(AssertionError, match="too late"):
        refused(output=tmp_path / "output")


def test_a_lock_leaves_nothing(tmp_path):
    with locks.run_lock(tmp_path / "new" / "run"):
        assert os.listdir(tmp_path / "new" / "run") == [locks.LOCK_FILE]
    assert not list(tmp_path.iterdir())
    (tmp_path / "run").mkdir()
    with locks.run_lock(tmp_path / "run"):
        (tmp_path / "run" / "result").write_text("text")
    assert os.listdir(tmp_path / "run") == ["result"]


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def lockf(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "lockf", lockf)
    with locks.run_lock(tmp_path / "run"):
        assert "a file system without locks" in caplog.text


# Shared memory


def disk(free: int):
    return lambda path: SimpleNamespace(free=free)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "pass --dataloader_num_workers 0, or give a container more (docker run --shm-size 2g)"),
        ("--dataloader_num_workers 4", "4 data-loading processes need up to 317 MiB of shared memory"),
        ("--per_device_train_batch_size 4", "pass --dataloader_num_workers 2,"),
    ],
)
def test_shared_memory_of_docker(capsys, tmp_path, monkeypatch, options, message):
    """64 MB, and the batches of ViT-S/16: 64 images of 2 views of 224 pixels and 10 of 96, one byte per value."""
    monkeypatch.setattr(run_pretrain, "load_data", too_late)
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", disk(64 * 10**6 if "size 4" not in options else 15 * 10**6))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(10)))
    options = ("ibot-vits16", "--train_dir", tmp_path, "--output_dir", tmp_path / "run", *options.split())
    assert message in refusal(capsys, "pretrain", *options)


def test_shared_memory_that_is_enough(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", disk(1000))
    args = SimpleNamespace(dataloader_num_workers=3, dataloader_prefetch_factor=None)
    # Two batches in advance for each process, and the one in use.
    machine.check_shared_memory(args, 100, 40)
    with pytest.raises(ValueError, match="--dataloader_num_workers 2"):
        machine.check_shared_memory(args, 110, 50)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="3 data-loading processes of each of 2 runs"):
        machine.check_shared_memory(args, 100, 40)
    args.dataloader_num_workers = 0
    machine.check_shared_memory(args, 10**9, 0)


@pytest.mark.skipif(not arguments.cpu_has_bfloat16(), reason="needs a processor with bfloat16")
def test_bfloat16_without_an_accelerator(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    args = arguments.MIMTrainingArguments(output_dir=str(tmp_path), bf16=True)
    assert args.use_cpu and args.device.type == "cpu" and args.mixed_precision == "bf16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "error: cannot write {}/pretraining: File too large"),
        (("--save_strategy", "epoch"), "error: cannot save {}/checkpoint-4: "),
    ],
)
def test_a_full_disk(capfd, pictures, tmp_path, options, message):
    """No file may grow beyond 20 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    options = (*TINY, "--train_dir", pictures, "--output_dir", tmp_path / "run", *options)
    try:
        assert hf_mim_cli.main(["pretrain", *map(str, options)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    errors = capfd.readouterr().err
    assert message.format(tmp_path / "run") in errors.splitlines()[-1] and "Traceback" not in errors
    # No part of a result or checkpoint.
    assert {path.name for path in tmp_path.rglob("*")} <= {"run", "trainer_state.json"}
