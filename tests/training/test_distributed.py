"""Two processes (gloo, CPU) with half the batch each do what one process does."""

import json
import socket
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForPreTraining

from .test_run_pretrain import SIZES, TINY, pictures  # noqa: F401


def start(processes: int, batch: int, folder, output, *options) -> subprocess.Popen:
    """A run of several processes, each with `batch` images."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    arguments = [*TINY, "--train_dir", folder, "--output_dir", output, "--per_device_train_batch_size", batch]
    # Stochastic depth draws from each process' own stream.
    arguments += ["--config_overrides", SIZES + ",drop_path_rate=0.0", "--eval_split", "test", *options]
    command += ["-m", "hf_mim.training.run_pretrain", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def launch(processes: int, batch: int, folder, output, *options) -> list[dict]:
    """The same to its end; gives its log."""
    process = start(processes, batch, folder, output, *options)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads((output / "trainer_state.json").read_text())["log_history"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["centering", "sinkhorn"])
def test_two_processes_equal_one(pictures, tmp_path, target):  # noqa: F811
    options = ("--target", target, "--eval_strategy", "epoch")
    one = launch(1, 8, pictures, tmp_path / "one", *options)
    two = launch(2, 4, pictures, tmp_path / "two", *options)
    assert len(one) == len(two)
    compared = 0
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for name in ("loss", "loss_cls", "loss_patch", "target_entropy", "grad_norm", "agreement", "prototypes_used"):
            if name in first:
                assert second[name] == pytest.approx(first[name], rel=2e-4), name
                compared += 1
        for name in first:
            if "knn" in name:
                assert first[name] == second[name]
                compared += 1
    assert compared > 20
    for part in ("", "teacher"):
        weights = [
            AutoModelForPreTraining.from_pretrained(tmp_path / run / "pretraining", subfolder=part).state_dict()
            for run in ("one", "two")
        ]
        for name, value in weights[0].items():
            # The gradient of the key bias is rounding noise, of which AdamW makes steps of the learning rate.
            if "k_proj.bias" not in name:
                torch.testing.assert_close(weights[1][name], value, rtol=0, atol=2e-4, msg=name)
