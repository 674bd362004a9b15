"""Schedules of the original code (`utils.py`, `cosine_scheduler`; `main_ibot.py`, teacher temperatures)."""

import math


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
