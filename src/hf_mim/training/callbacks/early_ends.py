"""How a run ends before its last step: saved where it stands, or with a line that names the last checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...utils.console import MISTAKES, mistake
from ...utils.processes import kill_workers
from ..checkpoints import describe_last, list_checkpoints
from .stop_signals import WaitEnded


if TYPE_CHECKING:
    from ..trainer import MIMTrainer


@contextmanager
def early_ends(trainer: MIMTrainer) -> Iterator[None]:
    """
    Save the run of the block if [`WaitEnded`] leaves it, and word its failures.

    Raises:
        ChildProcessError: If no data came for too long.
        OSError: For failures of the machine that other libraries report: memory, data-loading processes, disk. The
            message names the last checkpoint.
    """
    try:
        yield
    except WaitEnded:
        kill_workers()
        save_between_steps(trainer)
        if trainer.stop_signals.received is None:
            raise ChildProcessError(no_data(trainer.args.dataloader_timeout) + _outlook(trainer)) from None
        trainer.stop_signals.stopping = True
    except Exception as error:
        # An optimizer or attention whose package is missing shows before the first step.
        message = None if isinstance(error, (*MISTAKES, ImportError)) else mistake(error)
        if message is None:
            raise
        kill_workers()
        raise OSError(message + _outlook(trainer)) from error


def save_between_steps(trainer: MIMTrainer) -> None:
    """Save a checkpoint of a run that waits for data between two steps, unless there is one of this step."""
    state, saved = trainer.state, list_checkpoints(trainer.output_dir)
    if not state.global_step or any(path.name.endswith(f"-{state.global_step}") for path in saved):
        return
    trainer.stop_signals.restore_random_state()
    trainer._save_checkpoint(trainer.model, trial=None)
    trainer.control = trainer.callback_handler.on_save(trainer.args, state, trainer.control)


def no_data(seconds: float) -> str:
    """Return what it means that a loader has waited for `seconds`."""
    return f"no images came from the data-loading processes for {seconds:g} seconds (--dataloader_timeout)"


def _outlook(trainer: MIMTrainer) -> str:
    return (
        f". The run ended after step {trainer.state.global_step}. {describe_last(trainer.output_dir)} Start the run "
        "again in the same way to continue from there."
    )
