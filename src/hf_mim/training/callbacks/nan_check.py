"""Noticing a loss or gradient that is not finite, without making the device wait."""

import math

import torch


class FiniteCheck:
    """Looks at a few scalars of every step: at once on the CPU, one step later on a GPU, when they have arrived."""

    def __init__(self):
        self._pending: tuple[int, list[str], torch.Tensor, torch.cuda.Event | None] | None = None

    def note(self, step: int, values: dict[str, torch.Tensor]) -> tuple[int, dict[str, float]] | None:
        """Take the scalars `values` of `step`; gives a step and its scalars if they are known not to be all finite."""
        stacked = torch.stack([value.detach().float().reshape(()) for value in values.values()])
        failure = self.flush()
        arrived = None
        if stacked.is_cuda:
            stacked = stacked.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending = (step, list(values), stacked, arrived)
        return failure if failure or arrived else self.flush()

    def flush(self) -> tuple[int, dict[str, float]] | None:
        """The same for what was noted last, waiting for it if need be."""
        if self._pending is None:
            return None
        step, names, stacked, arrived = self._pending
        self._pending = None
        if arrived is not None:
            arrived.synchronize()
        values = stacked.tolist()
        return None if all(map(math.isfinite, values)) else (step, dict(zip(names, values, strict=True)))
