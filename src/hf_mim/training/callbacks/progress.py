"""Callbacks that connect the trainer to the training loop, and the progress bar."""

import sys
from typing import Protocol

from tqdm.auto import tqdm
from transformers.trainer_callback import ProgressCallback, TrainerCallback


class StepHooks(Protocol):
    """Hooks of [`~hf_mim.training.trainer.MIMTrainer`] that [`StepCallback`] calls."""

    @property
    def train_dataset(self) -> object: ...

    def epoch_of(self, step: int) -> int: ...

    def before_step(self) -> None: ...

    def before_optimizer_step(self) -> None: ...

    def after_optimizer_step(self) -> None: ...

    def after_training(self) -> None: ...


class StepCallback(TrainerCallback):
    """
    Calls hooks of a trainer at points of a step for which `Trainer` has no method to override.

    Args:
        trainer (`StepHooks`): The trainer.
    """

    def __init__(self, trainer: StepHooks):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        dataset = self.trainer.train_dataset
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(self.trainer.epoch_of(state.global_step))

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.before_step()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.before_optimizer_step()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.after_optimizer_step()

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.after_training()


class MIMProgressCallback(ProgressCallback):
    """
    Progress bar that shows the loss, its parts and the throughput, and prints a line for every evaluation.

    Where the output is no terminal, such as a log file, each log is one line, too, and there is no bar.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None and not sys.stderr.isatty():
            self.training_bar.close()
            self.training_bar = tqdm(total=state.max_steps, disable=True)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or logs is None:
            return
        accuracies = {name: value for name, value in logs.items() if name.startswith("eval_knn") and "top1" in name}
        if accuracies:
            values = ", ".join(f"{name.split('_')[2]}-NN {value:.1f} %" for name, value in accuracies.items())
            self.training_bar.write(f"step {state.global_step:>6}: {values}")
        elif "eval_codebook_usage" in logs:
            used, loss = logs["eval_codebook_usage"], logs["eval_loss_feature"]
            self.training_bar.write(
                f"step {state.global_step:>6}: {100 * used:.1f} % of the codes in use, perplexity "
                f"{logs['eval_perplexity']:.0f}, loss_feature {loss:.3f}"
            )
        elif "loss" in logs:
            parts = [f"{name} {logs[name]:.3f}" for name in logs if name == "loss" or name.startswith("loss_")]
            if "images_per_second" in logs:
                parts.append(f"{logs['images_per_second']:.0f} img/s, data {100 * logs['data_wait']:.0f} %")
            if self.training_bar.disable:
                self.training_bar.write(f"step {state.global_step:>6} of {state.max_steps}: {', '.join(parts)}")
            else:
                self.training_bar.set_postfix_str(", ".join(parts))
