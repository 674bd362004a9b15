"""Statistics of a feature matrix that need no labels and reveal a collapsed representation early."""

import torch
import torch.nn.functional as F


def feature_std(features: torch.Tensor) -> float:
    """
    Return the spread of L2-normalized features: mean standard deviation over the dimensions, times sqrt(D).

    It is 1 for isotropic features with zero mean, and 0 if all images get the same direction (collapse). A common
    offset of all features lowers it. This is the collapse check of SimSiam (Chen & He 2021, figure 2), rescaled so
    that it does not depend on the width.

    Args:
        features (`torch.Tensor` of shape `(n, D)`): Float, n >= 1.

    Returns:
        `float`: A number in [0, 1].
    """
    _check(features)
    directions = F.normalize(features.double(), dim=1)
    return directions.std(dim=0, correction=0).mean().item() * features.shape[1] ** 0.5


def rankme(features: torch.Tensor) -> float:
    """
    Return the effective rank: the exponential of the entropy of the normalized singular values.

    RankMe, Garrido et al. 2023 (https://arxiv.org/abs/2210.02885), equation 2: p_i = s_i / sum(s) + 1e-7. The
    features are neither centered nor normalized.

    Args:
        features (`torch.Tensor` of shape `(n, D)`): Float, n >= 1.

    Returns:
        `float`: A number in [1, min(n, D)], up to the epsilon; 1 if all features lie on one line.
    """
    _check(features)
    values = torch.linalg.svdvals(features.double())
    if values.sum() == 0:
        return 1.0
    shares = values / values.sum() + 1e-7
    return (-(shares * shares.log()).sum()).exp().item()


def _check(features: torch.Tensor) -> None:
    if features.ndim != 2 or features.numel() == 0:
        raise ValueError(f"features must be a non-empty tensor [n, D], not {[*features.shape]}")
    if not features.isfinite().all():
        raise ValueError("features contain NaN or infinity; the model has diverged")
