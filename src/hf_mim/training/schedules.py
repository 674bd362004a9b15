"""
Schedules of the original codes (iBOT: `utils.py`, `cosine_scheduler`, and `main_ibot.py`, teacher temperatures; dBOT:
`util/lr_sched.py`).
"""

import math
from collections.abc import Sequence
from itertools import pairwise


def cosine_schedule(
    step: int, base: float, final: float, total_steps: int, warmup_steps: int = 0, start: float = 0.0
) -> float:
    """
    Value at `step` of a linear warm-up from `start` to `base` and a cosine from `base` to `final`.

    Both ends of the warm-up belong to it, so that the first step has the value `start` and the peak is taken twice;
    the cosine stops one step short of `final`.

    Args:
        step (`int`): Step, from 0 on. From `total_steps` on the value is `final`.
        base (`float`): Value at the end of the warm-up.
        final (`float`): Value that the cosine runs towards.
        total_steps (`int`): Steps of warm-up and cosine together.
        warmup_steps (`int`, defaults to 0): Steps of the warm-up.
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
    Value at `step` of dBOT's schedule: in every stage a linear warm-up from 0 to `base` and a cosine from `base` to
    `final`. The first step of a stage with a warm-up has the value 0, the one after the warm-up has `base`.

    Args:
        step (`float`): Step, from 0 on, or any other measure of time that the next two share.
        base (`float`): Value at the end of the warm-up.
        final (`float`): Value that the cosine runs towards; also that after the last stage.
        boundaries (`Sequence[float]`): Where the stages begin, and where the last one ends.
        warmup (`float`, defaults to 0.0): Length of the warm-up.
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
    Teacher temperature in `epoch`: `warmup_temp` before `start_epoch`, then linear over `warmup_epochs` epochs, of
    which the last already has `final_temp` (a warm-up of one epoch has `warmup_temp` only), then `final_temp`.
    """
    epoch -= start_epoch
    if epoch < 0:
        return warmup_temp
    if epoch >= warmup_epochs:
        return final_temp
    return warmup_temp + (final_temp - warmup_temp) * epoch / (warmup_epochs - 1) if warmup_epochs > 1 else warmup_temp
