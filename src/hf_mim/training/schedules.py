"""
Schedules of the official code; which of them are longer than the run, and what to do about them.

The originals are `cosine_scheduler` in iBOT's `utils.py`, the teacher temperatures in iBOT's `main_ibot.py`, and
`util/lr_sched.py` of dBOT.
"""

import logging
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


logger = logging.getLogger(__name__)


def cosine_schedule(
    step: int, base: float, final: float, total_steps: int, warmup_steps: int = 0, start: float = 0.0
) -> float:
    """
    Return the value at `step` of a linear warm-up from `start` to `base`, followed by a cosine from `base` to `final`.

    The warm-up includes both of its ends: the first step has the value `start`, and two steps have the value `base`.
    The cosine stops one step before it reaches `final`.

    Args:
        step (`int`): Step, counted from 0. From `total_steps` on, the value is `final`.
        base (`float`): Value at the end of the warm-up.
        final (`float`): Value that the cosine approaches.
        total_steps (`int`): Number of steps of warm-up and cosine together.
        warmup_steps (`int`, defaults to 0): Number of steps of the warm-up.
        start (`float`, defaults to 0.0): First value of the warm-up.
    """
    if step < warmup_steps:
        return start + (base - start) * step / (warmup_steps - 1) if warmup_steps > 1 else start
    if step >= total_steps:
        return final
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * progress))


def staged_cosine_schedule(
    step: float, base: float, final: float, boundaries: Sequence[float], warmup: float = 0.0
) -> float:
    """
    Return the value of dBOT's schedule at `step`.

    Every stage has a linear warm-up from 0 to `base` and a cosine from `base` to `final`. The first step of a stage
    with a warm-up has the value 0, the first step after the warm-up has the value `base`.

    Args:
        step (`float`): Step, counted from 0. Epochs work as well if `boundaries` and `warmup` are in epochs, too.
        base (`float`): Value at the end of the warm-up.
        final (`float`): Value that the cosine approaches, and the value after the last stage.
        boundaries (`Sequence[float]`): First step of every stage, and the end of the last stage.
        warmup (`float`, defaults to 0.0): Length of the warm-up of every stage.
    """
    for start, end in pairwise(boundaries):
        if step < end:
            since, length = step - start, end - start
            if since < warmup:
                return base * since / warmup
            progress = (since - warmup) / (length - warmup)
            return final + 0.5 * (base - final) * (1 + math.cos(math.pi * progress))
    return final


def teacher_temperature(
    epoch: int, warmup_temp: float, final_temp: float, warmup_epochs: int, start_epoch: int = 0
) -> float:
    """
    Return the teacher temperature in `epoch`.

    It is `warmup_temp` before `start_epoch`, then grows linearly over `warmup_epochs` epochs, the last of which has
    `final_temp` already, and stays `final_temp` from then on. A warm-up of one epoch has the value `warmup_temp`.
    """
    epoch -= start_epoch
    if epoch < 0:
        return warmup_temp
    if epoch >= warmup_epochs:
        return final_temp
    return warmup_temp + (final_temp - warmup_temp) * epoch / (warmup_epochs - 1) if warmup_epochs > 1 else warmup_temp


# Schedules that are longer than the run


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


def warmup_too_long(args: Any, epochs: float, steps_per_epoch: int | None, part: str = "the run") -> list[TooLong]:
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


def fit_or_refuse(args: Any, too_long: Sequence[TooLong], argv: Sequence[str] | None = None) -> None:
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
