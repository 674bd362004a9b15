"""Compare k-NN accuracies beyond chance, and warn while a run falls below its start."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback


logger = logging.getLogger(__name__)

# Two accuracies that differ by more standard errors than that differ by more than chance, in 19 of 20 cases.
STANDARD_ERRORS = 2.0


def smallest_difference(one: float, other: float, images: int) -> float:
    """
    Return the difference of two accuracies beyond which it is more than chance, in percentage points.

    Args:
        one, other (`float`): Accuracies in percent, on the same images. That both were measured on the same images
            makes chance smaller than it is taken for here.
        images (`int`): Number of images.
    """
    # An accuracy of 0 or 100 % has no standard error by the formula: one image more or less counts.
    shares = [min(max(value / 100, 1 / (images + 2)), 1 - 1 / (images + 2)) for value in (one, other)]
    return 100 * STANDARD_ERRORS * math.sqrt(sum(share * (1 - share) for share in shares) / images)


def shown_accuracy(metrics: Mapping[str, Any], prefix: str) -> tuple[int, float] | None:
    """
    Return number of neighbors and top-1 accuracy that stand for an evaluation: of 20, or of the most below it.

    Args:
        metrics (`Mapping[str, Any]`): Metrics or a log entry.
        prefix (`str`): Start of the names, such as `"eval_knn_"`.
    """
    found = {
        int(name.removeprefix(prefix).removesuffix("_top1")): value
        for name, value in metrics.items()
        if name.startswith(prefix) and name.endswith("_top1")
    }
    if not found:
        return None
    k = max((k for k in found if k <= 20), default=min(found))
    return k, found[k]


class KnnWatch(TrainerCallback):
    """
    Warns once while a run trains if its k-NN accuracy has fallen below that of its first evaluation.

    Args:
        images (`int`): Number of images that an evaluation classifies.
    """

    def __init__(self, images: int):
        self.images = images
        self._warned = False

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        evaluations = [shown_accuracy(entry, "eval_knn_") for entry in state.log_history]
        first = next((found for found in evaluations if found is not None), None)
        now = shown_accuracy(metrics or {}, "eval_knn_")
        if self._warned or first is None or now is None or not self.images or not state.is_world_process_zero:
            return
        if first[1] - now[1] > smallest_difference(first[1], now[1], self.images):
            self._warned = True
            logger.warning(
                f"step {state.global_step}: {now[0]}-NN accuracy has fallen from {first[1]:.1f} to {now[1]:.1f} %, by "
                "more than chance: the features get worse. The usual cause is a learning rate that is too high for "
                "the weights that the run started from"
            )
