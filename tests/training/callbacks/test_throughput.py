"""Images per second and the share of time that passes in waiting for data."""

import pytest
from transformers import TrainerCallback

from hf_mim.training.callbacks.throughput import Throughput
from tests.testing.tiny_training import Noise, tiny_trainer


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


def test_nested_pauses_count_once():
    clock = Clock()
    throughput = Throughput(clock)
    with throughput.waiting():
        clock.now += 1
    throughput.count(8)
    with throughput.paused():
        clock.now += 10
        with throughput.paused():
            clock.now += 10
        clock.now += 10
    clock.now += 1
    assert throughput.read() == (8, 2.0, 1.0)
    with pytest.raises(KeyError), throughput.paused():
        raise KeyError
    # The failed pause has ended.
    with throughput.paused():
        clock.now += 5
    clock.now += 3
    assert throughput.read() == (0, 3.0, 0.0)


class Watched(TrainerCallback):
    """Lets the clock of a trainer go on by `step` seconds in every step."""

    def __init__(self, clock: Clock, step: float):
        self.clock, self.step = clock, step

    def on_step_begin(self, args, state, control, **kwargs):
        self.clock.now += self.step


class SlowImages(Noise):
    """Every image takes an eighth of a second of `clock`."""

    clock: Clock

    def __getitem__(self, index: int):
        self.clock.now += 0.125
        return super().__getitem__(index)


def watched_trainer(folder, step: float, **options):
    clock = Clock()
    images = SlowImages()
    images.clock = clock
    trainer = tiny_trainer(folder, images, callbacks=[Watched(clock, step)], **options)
    trainer.throughput = Throughput(clock)
    return trainer, clock


def logs_of(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_slow_data_is_waited_for(tmp_path):
    trainer, _ = watched_trainer(tmp_path, step=0.25, max_steps=4, logging_steps=4, dataloader_num_workers=0)
    trainer.train()
    (log,) = logs_of(trainer)
    # Four batches of eight seconds-eighths and one that accelerate's loader reads ahead; four steps.
    assert log["images_per_second"] == pytest.approx(32 / 6) and log["data_wait"] == pytest.approx(5 / 6)


def test_accumulated_batches_count(tmp_path):
    trainer, _ = watched_trainer(tmp_path, step=14.0, max_steps=3, gradient_accumulation_steps=2)
    trainer.train()
    logs = logs_of(trainer)
    assert len(logs) == 3
    # Two batches, that is two seconds of waiting, in sixteen seconds; the first step also reads ahead.
    for log in logs[1:]:
        assert log["images_per_second"] == pytest.approx(1.0) and log["data_wait"] == pytest.approx(2 / 16)


def test_evaluating_and_saving_do_not_count(tmp_path, monkeypatch):
    trainer, clock = watched_trainer(tmp_path, step=7.0, max_steps=3, save_strategy="steps", save_steps=1)

    def take_long(*args, **kwargs):
        clock.now += 1000
        return {}

    class Evaluate(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_evaluate = True

    monkeypatch.setattr(trainer, "save_target", take_long)
    monkeypatch.setattr(trainer, "measure", take_long)
    trainer.eval_dataset = trainer.train_dataset
    trainer.add_callback(Evaluate())
    trainer.train()
    # Eight images in eight seconds.
    assert [log["images_per_second"] for log in logs_of(trainer)[1:]] == pytest.approx([1.0, 1.0])


def test_a_log_before_any_batch_has_no_speed(tmp_path):
    trainer = tiny_trainer(tmp_path)
    assert Throughput().collect(trainer.accelerator) == {}
