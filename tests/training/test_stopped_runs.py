"""What stops a run while it waits: signals, stopped and killed data-loading processes. Real processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from transformers import Trainer

from hf_mim.training.callbacks import stop_signals
from hf_mim.training.callbacks.stop_signals import EXIT_INTERRUPTED
from hf_mim.training.checkpoints import list_checkpoints
from hf_mim.training.ibot_trainer import IBotTrainer
from tests.testing.resuming import assert_equal_weights
from tests.testing.tiny_training import SIZES, TINY, logged_losses, pretrain


class Run:
    """A run of the command line with two data-loading processes that saves every five steps, until it is stopped."""

    def __init__(self, pictures, output, *options, program=("-m", "hf_mim_cli", "pretrain"), environment=None):
        command = [sys.executable, *program, *TINY, "--train_dir", pictures, "--output_dir", output]
        command += ["--num_train_epochs", 100_000, "--dataloader_num_workers", 2, "--logging_strategy", "no"]
        command += ["--save_strategy", "steps", "--save_steps", 5, "--save_total_limit", 2, *options]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {})
        self.process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.output = output

    def _read(self):
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for worker in self.workers():
            os.kill(worker, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def workers(self) -> list[int]:
        try:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except FileNotFoundError:
            return []
        return [int(number) for number in children.split()]

    def until(self, condition, seconds=60.0) -> float:
        """Wait for a condition; gives the seconds that it took."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < seconds, "".join(self.lines)
            assert self.process.poll() is None or condition(), "".join(self.lines)
            time.sleep(0.01)
        return time.monotonic() - start

    def says(self, words: str) -> bool:
        return any(words in line for line in self.lines)

    def end(self, seconds: float) -> int:
        code = self.process.wait(seconds)
        self._reader.join()
        return code

    def stop_workers(self):
        """Wait until the run has saved, and stop its workers like a machine that does not get to them."""
        self.until(lambda: list_checkpoints(self.output))
        workers = self.workers()
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        # The batches that are ready are used up.
        time.sleep(1)


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")


@needs_proc
def test_interrupts_while_the_workers_are_stopped(pictures, tmp_path):
    with Run(pictures, tmp_path / "run") as run:
        run.stop_workers()
        run.process.send_signal(signal.SIGINT)
        assert run.until(lambda: run.says("finishing this step")) < 1
        assert run.says("press Ctrl-C again to stop now")
        run.process.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert run.end(10) == 130 and time.monotonic() - start < 3
        assert "".join(run.lines).endswith("hf-mim: interrupted\n") and not run.says("Traceback")


@needs_proc
def test_a_signal_while_the_workers_are_stopped_saves_the_last_step(pictures, tmp_path):
    with Run(pictures, tmp_path / "run") as run:
        run.stop_workers()
        run.process.send_signal(signal.SIGTERM)
        assert run.end(20) == EXIT_INTERRUPTED
        assert run.says("SIGTERM: finishing this step") and not run.says("Traceback")
        last = list_checkpoints(tmp_path / "run")[-1]
        assert run.says(f"stopped by SIGTERM after step {last.name.partition('-')[2]}. The last checkpoint is {last}.")


@needs_proc
def test_a_killed_worker_is_one_line(pictures, tmp_path):
    # Without the timeout, an error that PyTorch raises inside of a finalizer would show after 15 minutes only.
    with Run(pictures, tmp_path / "run", "--dataloader_timeout", 15) as run:
        run.until(lambda: list_checkpoints(tmp_path / "run") and len(run.workers()) == 2)
        os.kill(run.workers()[0], signal.SIGKILL)
        assert run.end(60) == 2
        errors = [line for line in run.lines if line.startswith("hf-mim: error: ")]
        assert len(errors) == 1 and not run.says("Traceback"), "".join(run.lines)
        assert "a data-loading process was killed (SIGKILL)" in errors[0] and "--dataloader_num_workers" in errors[0]
        assert f"The last checkpoint is {list_checkpoints(tmp_path / 'run')[-1]}." in errors[0]


@needs_proc
def test_workers_that_deliver_nothing_end_the_run(pictures, tmp_path):
    with Run(pictures, tmp_path / "run", "--dataloader_timeout", 2) as run:
        run.stop_workers()
        assert run.end(20) == 2
        errors = [line for line in run.lines if line.startswith("hf-mim: error: ")]
        assert len(errors) == 1 and "no images came from the data-loading processes for 2 seconds" in errors[0]
        assert f"The last checkpoint is {list_checkpoints(tmp_path / 'run')[-1]}." in errors[0]


# One call without the interpreter's lock, as the backward pass of a large model is.
LONG_STEP = """
import hashlib, sys, hf_mim_cli
from hf_mim.training.callbacks.progress import StepCallback

def busy(self, args, state, control, **kwargs):
    if state.global_step == 5:
        print("busy", file=sys.stderr)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)

StepCallback.on_step_begin = busy
sys.exit(hf_mim_cli.main(["pretrain", *sys.argv[1:]]))
"""


def test_interrupts_within_a_long_step(pictures, tmp_path):
    with Run(pictures, tmp_path / "run", program=("-c", LONG_STEP)) as run:
        run.until(lambda: run.says("busy"))
        run.process.send_signal(signal.SIGINT)
        assert run.until(lambda: run.says("finishing this step")) < 1
        assert run.process.poll() is None
        run.process.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert run.end(10) == 130 and time.monotonic() - start < 3
        assert "".join(run.lines).endswith("hf-mim: interrupted\n")


# In this process


@pytest.mark.parametrize(("step", "number"), [(3, signal.SIGTERM), (4, signal.SIGHUP)])
def test_a_run_that_is_stopped_while_it_waits_resumes_to_the_bit(pictures, tmp_path, monkeypatch, step, number):
    """Within an epoch, and at its beginning, which draws from the global random generators."""
    options = ("--train_dir", pictures, "--config_overrides", SIZES + ",drop_path_rate=0.3")
    pretrain(*options, output=tmp_path / "whole")
    get_batch_samples = Trainer.get_batch_samples

    def wait(trainer, *arguments):
        batches = get_batch_samples(trainer, *arguments)
        if trainer.state.global_step == step:
            signal.raise_signal(number)
            time.sleep(20)
            pytest.fail("still waiting")
        return batches

    with monkeypatch.context() as patch:
        patch.setattr(stop_signals, "PATIENCE", 0.1)
        patch.setattr(Trainer, "get_batch_samples", wait)
        with pytest.raises(SystemExit) as ended:
            pretrain(*options, output=tmp_path / "cut")
    assert ended.value.code == EXIT_INTERRUPTED
    assert [path.name for path in list_checkpoints(tmp_path / "cut")] == [f"checkpoint-{step}"]
    pretrain(*options, output=tmp_path / "cut")
    assert logged_losses(tmp_path / "cut") == logged_losses(tmp_path / "whole")
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")


def test_a_signal_during_an_evaluation_ends_it(pictures, tmp_path, monkeypatch):
    """The step before it is saved; the evaluation would take minutes."""

    def measure(trainer, dataset):
        if not trainer.state.global_step:
            return {}
        signal.raise_signal(signal.SIGTERM)
        time.sleep(20)
        pytest.fail("still measuring")

    monkeypatch.setattr(stop_signals, "PATIENCE", 0.1)
    monkeypatch.setattr(IBotTrainer, "measure", measure)
    options = ("--train_dir", pictures, "--eval_split", "test", "--eval_strategy", "epoch")
    with pytest.raises(SystemExit) as ended:
        pretrain(*options, output=tmp_path)
    assert ended.value.code == EXIT_INTERRUPTED
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4"]
