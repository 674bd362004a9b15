"""Detect a loss or gradient that is not finite, without synchronizing with the device."""

import math
from collections.abc import Callable

import torch


class FiniteCheck:
    """
    Checks a few scalars of every step. On a CPU this happens at once, on a GPU one step later, when they have arrived.

    Args:
        advice (`Callable`): Returns the end of the error message.
    """

    def __init__(self, advice: Callable[[], str]):
        self._advice = advice
        self._values: dict[str, torch.Tensor] = {}
        self._pending: tuple[int, list[str], torch.Tensor, torch.cuda.Event | None] | None = None

    def add(self, name: str, value: torch.Tensor) -> None:
        """Add a scalar to the value `name` of the current step."""
        self._values[name] = self._values[name] + value if name in self._values else value

    def end_step(self, step: int) -> None:
        """Check the values of `step`. Raises `FloatingPointError` if these or earlier ones are not finite."""
        stacked = torch.stack([value.detach().float().reshape(()) for value in self._values.values()])
        names, self._values = list(self._values), {}
        self.flush()
        arrived = None
        if stacked.is_cuda:
            stacked = stacked.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending = (step, names, stacked, arrived)
        if arrived is None:
            self.flush()

    def flush(self) -> None:
        """Wait for the values of the last step. Raises `FloatingPointError` if they are not finite."""
        if self._pending is None:
            return
        step, names, stacked, arrived = self._pending
        self._pending = None
        if arrived is not None:
            arrived.synchronize()
        values = stacked.tolist()
        if not all(map(math.isfinite, values)):
            figures = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values, strict=True))
            raise FloatingPointError(f"not finite at step {step}: {figures}. {self._advice()}")
