"""Targets from the teacher's logits: centering (the original) and Sinkhorn–Knopp (an option)."""

import torch
import torch.distributed as dist
from torch import nn

from ..modeling.layers import at_least_float32


def _all_reduce(tensor: torch.Tensor, op: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM) -> torch.Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor, op=op)
    return tensor


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class CenteredTargets(nn.Module):
    """
    Centering and sharpening (`main_ibot.py`, `iBOTLoss`): softmax of the teacher's logits minus a running center.

    Args:
        out_dim (`int`): Number K of prototypes for the CLS token.
        patch_out_dim (`int`): Number P of prototypes for patches.
        cls_momentum (`float`, defaults to 0.9): Momentum m₁ of the CLS center, in [0, 1].
        patch_momentum (`float`, defaults to 0.9): Momentum m₂ of the patch center, in [0, 1].

    Attributes:
        cls_center (`[K]`): Center of the CLS logits, zero at first.
        patch_center (`[P]`): Center of the patch logits, zero at first.
    """

    cls_center: torch.Tensor
    patch_center: torch.Tensor

    def __init__(self, out_dim: int, patch_out_dim: int, cls_momentum: float = 0.9, patch_momentum: float = 0.9):
        super().__init__()
        self.cls_momentum, self.patch_momentum = cls_momentum, patch_momentum
        self.register_buffer("cls_center", torch.zeros(out_dim))
        self.register_buffer("patch_center", torch.zeros(patch_out_dim))
        self._collected: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(
        self, cls_logits: torch.Tensor, patch_logits: torch.Tensor, cls_temp: float, patch_temp: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the probabilities of `cls_logits` `[..., K]` and `patch_logits` `[M, P]` with the current centers."""
        target_cls = ((cls_logits - self.cls_center) / cls_temp).softmax(-1)
        target_patch = ((patch_logits - self.patch_center) / patch_temp).softmax(-1)
        return target_cls, target_patch

    def collect(self, mean_cls_logit: torch.Tensor, mean_patch_logit: torch.Tensor):
        """Record the mean logits `[K]` and `[P]` of one batch. An optimizer step may accumulate several batches."""
        self._collected.append((mean_cls_logit, mean_patch_logit))

    @torch.no_grad()
    def update(self):
        """Move the centers toward the mean of all recorded logits since the last update, over all processes."""
        if not self._collected:
            return
        cls_logits, patch_logits = zip(*self._collected, strict=True)
        for center, means, momentum in (
            (self.cls_center, cls_logits, self.cls_momentum),
            (self.patch_center, patch_logits, self.patch_momentum),
        ):
            mean = _all_reduce(torch.stack(means).mean(0)) / _world_size()
            center.mul_(momentum).add_(mean, alpha=1 - momentum)
        self._collected = []


@torch.no_grad()
def sinkhorn_knopp(logits: torch.Tensor, temperature: float, iterations: int = 3) -> torch.Tensor:
    """
    Return targets that use all prototypes equally often: Sinkhorn–Knopp on `exp(logits / temperature)` over the
    samples of all processes (Caron et al., 2020; DINOv2 uses it for both losses of iBOT).

    Args:
        logits (`[n, K]`): Teacher logits; n may differ between processes and may be 0.
        temperature (`float`): Positive; smaller values give sharper targets.
        iterations (`int`, defaults to 3): Rounds of normalizing over samples and over prototypes.

    Returns:
        `torch.Tensor`: Probabilities `[n, K]`. Each row sums to 1.
    """
    num_prototypes = logits.shape[1]
    scores = at_least_float32(logits) / temperature
    # A common shift cancels in the normalization and keeps exp within range.
    largest = scores.max() if scores.numel() else scores.new_full((), -torch.inf)
    probs = (scores - _all_reduce(largest, dist.ReduceOp.MAX)).exp()
    num_samples = _all_reduce(scores.new_full((), float(len(scores))))
    for _ in range(iterations):
        # Without the floor, a prototype far from every sample divides 0 by 0.
        per_prototype = _all_reduce(probs.sum(0)).clamp(min=torch.finfo(probs.dtype).tiny)
        probs = probs / (per_prototype * num_prototypes)
        per_sample = probs.sum(1, keepdim=True).clamp(min=torch.finfo(probs.dtype).tiny)
        probs = probs / (per_sample * num_samples)
    return probs * num_samples
