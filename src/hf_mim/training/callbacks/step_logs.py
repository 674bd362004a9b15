"""Means of scalars and statistics of features over the steps since the last log."""

import torch
from accelerate import Accelerator

from ...evaluation.representation import feature_std, rankme


# Rows kept for the feature statistics. More would make the singular value decomposition slow.
MAX_FEATURE_ROWS = 512


class StepLogs:
    """
    Collects values on the device without synchronizing; `collect` combines the processes.

    Args:
        accelerator (`Accelerator`): Combines the processes.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._max_rows = max(MAX_FEATURE_ROWS // accelerator.num_processes, 1)
        self._forget()

    def _forget(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._features: list[torch.Tensor] = []

    def add(self, name: str, value: torch.Tensor) -> None:
        """Add the scalar `value` to the mean of `name`."""
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1

    def add_features(self, features: torch.Tensor) -> None:
        """Keep features `[n, D]`, the same number in every process. They replace the oldest ones."""
        self._features.append(features.detach().float())
        if sum(map(len, self._features)) - len(self._features[0]) >= self._max_rows:
            del self._features[0]

    def collect(self) -> dict[str, float]:
        """Return means over steps and processes, `feature_std` and `rankme`. All processes must call this together."""
        logs: dict[str, float] = {}
        if self._sums:
            means = torch.stack([self._sums[name] / self._counts[name] for name in self._sums])
            logs.update(zip(self._sums, self._accelerator.reduce(means, "mean").tolist(), strict=True))
        if self._features:
            features = torch.cat(self._features)[-self._max_rows :].contiguous()
            # Not every device supports float64, the CPU does.
            features = self._accelerator.gather(features).cpu()
            logs |= {"feature_std": float(feature_std(features)), "rankme": float(rankme(features))}
        self._forget()
        return logs
