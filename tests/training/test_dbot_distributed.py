"""Stages of dBOT in two processes (gloo, CPU), copies or sharded: those of one process, and the same in both."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.testing.processes import CONFIGS, free_port


def launch(processes: int, folder: Path, sharded: bool, *options: str) -> list[dict]:
    """A run of `dbot_processes.py`; gives its losses."""
    config = CONFIGS / ("fsdp2.yaml" if sharded else "cpu.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", processes]
    command += ["--main_process_port", free_port(), "--mixed_precision", "no", "--config_file", config]
    command += ["-m", "tests.testing.dbot_processes", folder, 8 // processes, "sharded" if sharded else "copies"]
    run = subprocess.run(
        [*map(str, command), *options],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_equal_one(tmp_path, sharded):
    one = launch(1, tmp_path / "one", False)
    two = launch(2, tmp_path / "two", sharded)
    for entry, other in zip(one, two, strict=True):
        assert entry.keys() == other.keys()
        for name in ("loss", "loss_cls", "loss_patch", "stage", "grad_norm", "learning_rate"):
            if name in entry:
                assert other[name] == pytest.approx(entry[name], rel=1e-3, abs=1e-6), name
    # The patch projection's bias has learned in the first stage, the rest is drawn alike in all processes.
    bias = "dbot.embeddings.patch_embeddings.projection.bias"
    drawn = weights(tmp_path / "one", "process-0")
    processes = [weights(tmp_path / "two", f"process-{i}") for i in range(2)]
    for name, value in drawn.items():
        assert torch.equal(processes[0][name], processes[1][name]), name
        if name != bias:
            assert torch.equal(processes[0][name], value), name
    for network in ("student", "teacher"):
        found = weights(tmp_path / "two", network)
        for name, value in weights(tmp_path / "one", network).items():
            # The gradient of the key bias is rounding noise, of which AdamW makes steps of the learning rate.
            if "k_proj.bias" not in name:
                torch.testing.assert_close(found[name], value, rtol=0, atol=2e-4, msg=name)
    stages = [load_file(tmp_path / run / "stage-1" / "model.safetensors") for run in ("one", "two")]
    for name, value in stages[0].items():
        if "k_proj.bias" not in name:
            torch.testing.assert_close(stages[1][name], value, rtol=0, atol=2e-4, msg=name)
    for step in (4, 6):
        launch(2, tmp_path / f"cut-{step}", sharded, str(tmp_path / "two" / f"checkpoint-{step}"))
        for network in ("student", "teacher"):
            resumed = weights(tmp_path / f"cut-{step}", network)
            for name, value in weights(tmp_path / "two", network).items():
                assert torch.equal(resumed[name], value), (step, name)
