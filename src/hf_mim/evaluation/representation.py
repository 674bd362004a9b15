"""Statistics of a feature matrix that need no labels: the early signs of a collapsed representation."""

import torch
import torch.nn.functional as F


def feature_std(features: torch.Tensor) -> float:
    """Spread of L2-normalised features: mean over the dimensions of their standard deviation, times sqrt(D).

    1 for features that point everywhere alike (isotropic, zero mean), 0 when all images get the same direction
    (collapse). A common offset of all features lowers it. The collapse check of SimSiam (Chen & He 2021, figure 2),
    rescaled so that it does not depend on the width.

    Args:
        features: float `[n, D]`, n >= 1.

    Returns:
        A number in [0, 1].
    """
    _check(features)
    directions = F.normalize(features.double(), dim=1)
    return directions.std(dim=0, correction=0).mean().item() * features.shape[1] ** 0.5


def rankme(features: torch.Tensor) -> float:
    """Effective rank: the exponential of the entropy of the normalised singular values.

    RankMe, Garrido et al. 2023 (https://arxiv.org/abs/2210.02885), equation 2: p_i = s_i / sum(s) + 1e-7. The
    features are neither centred nor normalised.

    Args:
        features: float `[n, D]`, n >= 1.

    Returns:
        A number in [1, min(n, D)], up to the epsilon; 1 when all features lie on one line.
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
