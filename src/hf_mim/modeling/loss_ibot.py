"""The two terms of the iBOT loss (paper section 3; `main_ibot.py`, class `iBOTLoss`)."""

import torch
from torch import nn


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    # Under autocast the logits arrive in half precision, in which the loss would lose three digits.
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return nn.functional.log_softmax(logits / temperature, dim=-1)


def cls_loss(cls_logits: torch.Tensor, target_cls: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    Cross-entropy between the teacher's CLS distribution of each global view and the student's of every *other* view.

    Args:
        cls_logits (`[B, V, K]`): Student logits of all views, the global ones first.
        target_cls (`[B, G, K]`): Teacher probabilities of the global views.
        temperature (`float`): Temperature of the student's softmax.

    Returns:
        A scalar: the mean over the `G·(V−1)` pairs of views and over the batch.

    Raises:
        ValueError: If there is only one view, so that there is no pair to compare.
    """
    num_views, num_globals = cls_logits.shape[1], target_cls.shape[1]
    if num_views < 2:
        raise ValueError("the CLS loss compares different views of an image: it needs at least two of them")
    log_probs = _log_softmax(cls_logits, temperature)
    # The sum over all pairs factorises; what is taken away again are the pairs of a view with itself.
    all_pairs = (target_cls.sum(1) * log_probs.sum(1)).sum(-1)
    same_view = (target_cls * log_probs[:, :num_globals]).sum((1, 2))
    return -(all_pairs - same_view).mean() / (num_globals * (num_views - 1))


def patch_loss(
    patch_logits: torch.Tensor, target_patch: torch.Tensor, bool_masked_pos: torch.Tensor, temperature: float
) -> torch.Tensor:
    """
    Cross-entropy between teacher and student on the masked patches, averaged within each view first.

    A view without a masked patch counts as 0 in the mean over views, so with the standard masks, which leave half of
    the views whole, the term weighs about half of what its name suggests.

    Args:
        patch_logits (`[M, P]`): Student logits of the masked patches, in the row-major order of `bool_masked_pos`.
        target_patch (`[M, P]`): Teacher probabilities of the same patches.
        bool_masked_pos (`bool [B, G, N]`): Masked patches; M of them are true.
        temperature (`float`): Temperature of the student's softmax.

    Returns:
        A scalar; 0 when nothing is masked.
    """
    cross_entropy = -(target_patch * _log_softmax(patch_logits, temperature)).sum(-1)
    masked_per_view = bool_masked_pos.flatten(0, 1).sum(-1)
    weights = torch.repeat_interleave(
        1.0 / masked_per_view.clamp(min=1), masked_per_view, output_size=cross_entropy.shape[0]
    )
    return (cross_entropy * weights.to(cross_entropy.dtype)).sum() / masked_per_view.shape[0]
