"""Runs in several processes (gloo, CPU)."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import hf_mim
from tests.testing.tiny_training import SIZES, SWIN_SIZES, TINY, TINY_SWIN


CONFIGS = Path(hf_mim.__file__).parent / "training" / "accelerate_configs"


# Stochastic depth draws from each process' own stream.
IBOT = (*TINY, "--config_overrides", SIZES + ",drop_path_rate=0.0")


SWIN = (*TINY_SWIN, "--config_overrides", SWIN_SIZES + ",drop_path_rate=0.0")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    processes: int, batch: int, folder, output, *options, method=IBOT, sharded: bool = False, launcher: tuple = ()
) -> subprocess.Popen:
    """A run of several processes with `batch` images each; `sharded` by FSDP 2, or copies of the networks."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", processes]
    command += ["--main_process_port", free_port(), "--mixed_precision", "no", *launcher]
    if sharded:
        command += ["--config_file", CONFIGS / "fsdp2.yaml", Path(__file__).with_name("fsdp_on_cpu.py")]
    else:
        command += ["--config_file", CONFIGS / "cpu.yaml", "-m", "hf_mim.training.run_pretrain"]
    command += [*method, "--train_dir", folder, "--output_dir", output, "--per_device_train_batch_size", batch]
    command += ["--eval_split", "test", *options]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def launch(*arguments, **options) -> list[dict]:
    """`start`, to its end; gives the log of the run."""
    process = start(*arguments, **options)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads((arguments[3] / "trainer_state.json").read_text())["log_history"]
