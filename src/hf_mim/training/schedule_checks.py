"""Find the schedules that are longer than the run, all at once, and shorten or refuse them."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from .arguments import MIMTrainingArguments


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TooLong:
    """
    A schedule that is longer than the run, or than the stage that it belongs to.

    Args:
        problem (`str`): What is longer than what, as a clause.
        option (`str`): Name of the option to change.
        fitting (`float` or `list[int]`): A value with which the schedule fits.
    """

    problem: str
    option: str
    fitting: float | list[int]


def warmup_too_long(
    args: MIMTrainingArguments, epochs: float, steps_per_epoch: int | None, part: str = "the run"
) -> list[TooLong]:
    """
    Return the conflict if nothing of a run or stage is left after the learning rate's warm-up.

    Args:
        args (`MIMTrainingArguments`): `warmup_epochs`, `warmup_steps` and the kind of schedule.
        epochs (`float`): Length of the run or stage.
        steps_per_epoch (`int`, *optional*): Unknown before the data are loaded. A warm-up in steps is not checked
            without it.
        part (`str`, defaults to `"the run"`): What `epochs` is the length of, such as `"stage 2"`.
    """
    by_epochs = args.lr_scheduler_type == "cosine" and not args.warmup_steps
    fitting: float
    if steps_per_epoch is None:
        length, unit, option, fitting = epochs, "epochs", "warmup_epochs", epochs / 10
        warmup = args.warmup_epochs if by_epochs else 0
    else:
        length, unit = round(epochs * steps_per_epoch), "steps"
        warmup = int(args.warmup_epochs * steps_per_epoch) if by_epochs else args.get_warmup_steps(int(length))
        # A tenth of the run. Without warm-up steps, the epochs would count.
        fitting = int(length) // 10
        option = "warmup_epochs" if by_epochs and not fitting else "warmup_steps"
    if not 0 < warmup >= length:
        return []
    return [TooLong(f"the learning rate's warm-up takes {warmup:g} {unit}, {part} only {length:g}", option, fitting)]


def temperatures_too_long(warmup_epochs: int, start_epoch: int, num_epochs: int) -> list[TooLong]:
    """
    Return the conflicts if the warm-up of [`~hf_mim.training.schedules.teacher_temperature`] ends after the run.

    Args:
        warmup_epochs (`int`): Number of epochs of the warm-up.
        start_epoch (`int`): Epoch in which it starts.
        num_epochs (`int`): Number of epochs of the run. An incomplete epoch counts as one.
    """
    found = []
    if start_epoch > num_epochs:
        problem = f"the masks begin with epoch {start_epoch} (pred_start_epoch), the run has only {num_epochs}"
        found.append(TooLong(problem, "pred_start_epoch", 0))
        start_epoch = 0
    if warmup_epochs + start_epoch > num_epochs:
        # Three tenths of the run: the published ones spend 30 of 100 epochs.
        fitting = min(3 * num_epochs // 10, num_epochs - start_epoch)
        problem = (
            f"the teacher temperatures' warm-up ends after {warmup_epochs + start_epoch} epochs (warmup_teacher_temp_"
            f"epochs {warmup_epochs} + pred_start_epoch {start_epoch}), the run after {num_epochs}"
        )
        found.append(TooLong(problem, "warmup_teacher_temp_epochs", fitting))
    return found


def fit_or_refuse(args: MIMTrainingArguments, too_long: Sequence[TooLong], argv: Sequence[str] | None = None) -> None:
    """
    Shorten schedules that are longer than the run with `fit_schedules`; without it, refuse them all at once.

    Args:
        args (`MIMTrainingArguments`): The arguments to change.
        too_long (`Sequence[TooLong]`): The schedules.
        argv (`Sequence[str]`, *optional*): Arguments of `hf-mim pretrain` without access tokens, for a command that
            works.

    Raises:
        ValueError: If there are such schedules, without `fit_schedules`.
    """
    if not too_long:
        return
    if args.fit_schedules:
        for item in too_long:
            if args.should_log:
                logger.info(f"{item.problem}: {item.option} becomes {_shown(item.fitting)}")
            setattr(args, item.option, item.fitting)
        return
    problems = "; ".join(item.problem for item in too_long)
    if argv is None:
        values = ", ".join(f"{item.option} = {_shown(item.fitting)}" for item in too_long)
        raise ValueError(f"{problems}: set {values}, or fit_schedules")
    words = shlex.join(["hf-mim", "pretrain", *argv])
    options = " ".join(f"--{item.option} {_shown(item.fitting)}" for item in too_long)
    raise ValueError(f"{problems}. This works: {words} {options} (or add --fit_schedules, which chooses these values)")


def _shown(value: float | list[int]) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else f"{value:.6g}"
