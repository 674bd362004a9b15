"""Images per second and the share of time that passes in waiting for data."""

import time

from transformers import TrainerCallback

from hf_mim.training.throughput import Throughput

from .tiny import Noise, tiny_trainer


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_reading_counts_from_the_first_batch_and_without_pauses():
    clock = Clock()
    throughput = Throughput(clock)
    clock.now += 50  # before the first batch nothing counts, a pause neither
    with throughput.paused():
        clock.now += 50
    assert throughput.read() == (0, 0.0, 0.0)
    for wait, step, pause in ((3, 1, 0), (2, 2, 10)):
        with throughput.waiting():
            clock.now += wait
        throughput.count(8)
        clock.now += step
        with throughput.paused():
            clock.now += pause
    assert throughput.read() == (16, 8.0, 5.0)
    assert throughput.read() == (0, 0.0, 0.0)
    # From one log to the next there is no gap.
    clock.now += 1
    with throughput.waiting():
        clock.now += 1
    throughput.count(4)
    clock.now += 2
    assert throughput.read() == (4, 4.0, 1.0)
    throughput.count(8)
    throughput.restart()
    clock.now += 5
    assert throughput.read() == (0, 0.0, 0.0)


class SlowImages(Noise):
    def __getitem__(self, index: int):
        time.sleep(0.02)
        return super().__getitem__(index)


class SlowStep(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        time.sleep(0.2)


def test_slow_data_is_waited_for(tmp_path):
    trainer = tiny_trainer(tmp_path, SlowImages(), max_steps=4, logging_steps=4)
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert 0.6 < log["data_wait"] <= 1
    # Four batches of eight, and accelerate's loader is one batch ahead: at least 0.64 seconds.
    assert 5 < log["images_per_second"] < 50


def test_a_slow_model_does_not_wait(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=4, gradient_accumulation_steps=2, callbacks=[SlowStep()])
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 4
    for log in logs:
        assert 0 <= log["data_wait"] < 0.4
        # Two batches of eight in somewhat more than 0.2 seconds.
        assert 10 < log["images_per_second"] <= 80


def test_evaluating_and_saving_do_not_count(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=1)
    monkeypatch.setattr(trainer, "save_target", lambda folder, target: time.sleep(0.5))

    class Evaluate(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_evaluate = True

    monkeypatch.setattr(trainer, "evaluate", lambda **kwargs: time.sleep(0.5))
    trainer.add_callback(Evaluate())
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    # A second of each interval but the first passed in evaluating and saving.
    assert all(log["images_per_second"] > 8 for log in logs)


def test_a_log_before_any_batch_has_no_speed(tmp_path):
    trainer = tiny_trainer(tmp_path)
    assert Throughput().collect(trainer.accelerator) == {}
