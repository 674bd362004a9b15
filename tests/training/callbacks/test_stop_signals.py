"""What signals do to a run, and what is left of its processes."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback, TrainerControl

from hf_mim.training.callbacks.stop_signals import EXIT_INTERRUPTED, StopSignals
from hf_mim.training.checkpoints import list_checkpoints
from tests.testing.tiny_training import tiny_trainer


STATE = SimpleNamespace(global_step=3)


def test_a_signal_is_noted_and_ends_the_training_after_the_step():
    control = TrainerControl(should_evaluate=True)
    with StopSignals() as signals:
        signals.on_step_end(None, STATE, control)
        assert not (signals.stopping or control.should_save or control.should_training_stop)
        signal.raise_signal(signal.SIGTERM)
        signals.on_step_end(None, STATE, control)
        assert signals.stopping and control.should_save and control.should_log and control.should_training_stop
        assert not control.should_evaluate
        # The end of the epoch would save and evaluate a second time.
        control.should_evaluate = True
        signals.on_epoch_end(None, STATE, control)
        assert not (control.should_save or control.should_log or control.should_evaluate)


def test_a_signal_between_the_last_step_of_an_epoch_and_its_end_waits():
    """The other processes do not know of it yet: what the end of the epoch does, all of them do."""
    control = TrainerControl(should_save=True, should_evaluate=True, should_log=True)
    with StopSignals() as signals:
        signals.on_step_end(None, STATE, control)
        signal.raise_signal(signal.SIGTERM)
        signals.on_epoch_end(None, STATE, control)
        assert control.should_save and control.should_evaluate and control.should_log
        signals.on_step_end(None, STATE, control)
        assert signals.stopping


@pytest.fixture
def usual_interrupt():
    """A shell lets its background jobs ignore the interrupt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_after_the_last_step_takes_its_usual_effect(usual_interrupt):
    with pytest.raises(KeyboardInterrupt):
        with StopSignals():
            signal.raise_signal(signal.SIGINT)


def test_a_second_interrupt_ends_the_run_at_once():
    with pytest.raises(KeyboardInterrupt):
        with StopSignals():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("still running")


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


class Terminate(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            signal.raise_signal(signal.SIGTERM)


def test_the_checkpoint_that_a_signal_asks_for_stays_beside_the_best(tmp_path, monkeypatch):
    options = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "max_steps": 9}
    trainer = tiny_trainer(tmp_path, callbacks=[Terminate()], metric_for_best_model="knn_10_top1", **options)
    trainer.state.best_global_step = None

    class Best(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                state.best_global_step = 2

    trainer.add_callback(Best())
    with pytest.raises(SystemExit) as ended:
        trainer.train()
    assert ended.value.code == EXIT_INTERRUPTED
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-6"]


FAILING_RUN = """
import sys
from pathlib import Path
from tests.testing.tiny_training import tiny_trainer
from transformers import TrainerCallback

class Fail(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise RuntimeError("a defect")

if __name__ == "__main__":
    tiny_trainer(Path(sys.argv[1]), callbacks=[Fail()], dataloader_num_workers=2).train()
"""


def test_an_exception_ends_the_process_and_its_workers(tmp_path):
    """They ignore SIGTERM, with which Python would end them, and wait."""
    command = [sys.executable, "-c", FAILING_RUN, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "RuntimeError: a defect" in result.stderr
