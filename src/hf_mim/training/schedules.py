"""
Schedules of the official code.

The originals are `cosine_scheduler` in iBOT's `utils.py`, the teacher temperatures in iBOT's `main_ibot.py`, and
`util/lr_sched.py` of dBOT.
"""

import math
from collections.abc import Sequence
from itertools import pairwise


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
