"""What happened in the steps since the last log: means of scalars and statistics of features."""

import torch
from accelerate import Accelerator

from ...evaluation.representation import feature_std, rankme


# Rows kept for the feature statistics; more would cost time in the singular value decomposition.
MAX_FEATURE_ROWS = 512


class StepLogs:
    """Collects on the device, without waiting for it; `collect` joins the processes."""

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._max_rows = max(MAX_FEATURE_ROWS // accelerator.num_processes, 1)
        self._forget()

    def _forget(self):
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._features: list[torch.Tensor] = []

    def add(self, name: str, value: torch.Tensor):
        """Add the scalar `value` to the mean of `name`."""
        self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
        self._counts[name] = self._counts.get(name, 0) + 1

    def add_features(self, features: torch.Tensor):
        """Keep features `[n, D]`, the same number in every process; the oldest give way."""
        self._features.append(features.detach().float())
        if sum(map(len, self._features)) - len(self._features[0]) >= self._max_rows:
            del self._features[0]

    def collect(self) -> dict[str, float]:
        """Means over steps and processes, `feature_std` and `rankme`; all processes must call this."""
        logs = {}
        if self._sums:
            means = torch.stack([self._sums[name] / self._counts[name] for name in self._sums])
            logs.update(zip(self._sums, self._accelerator.reduce(means, "mean").tolist(), strict=True))
        if self._features:
            features = torch.cat(self._features)[-self._max_rows :].contiguous()
            # On the CPU, where there is float64 in any case.
            features = self._accelerator.gather(features).cpu()
            logs |= {"feature_std": float(feature_std(features)), "rankme": float(rankme(features))}
        self._forget()
        return logs
