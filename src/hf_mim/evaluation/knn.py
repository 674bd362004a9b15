"""
Weighted k-nearest-neighbor classification, which measures a frozen encoder without any training.

Wu et al. 2018 (https://arxiv.org/abs/1805.01978), section 3.4, with the constants of iBOT's `evaluation/eval_knn.py`:
temperature 0.07 and k in {10, 20, 100, 200}.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F


# A neighbor is stored in one int64: high bits, cosine similarity in steps of 2^-24 (float32 precision at 1); low bits,
# index in the bank.
_SIMILARITY_STEPS = 2**24
_INDEX_RANGE = 2**32


def knn_classify(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    k: int | Sequence[int],
    temperature: float = 0.07,
    num_classes: int | None = None,
    query_chunk_size: int = 512,
    bank_chunk_size: int = 16384,
) -> dict[int, torch.Tensor]:
    """
    Rank the classes of each query by the votes exp(similarity / temperature) of its k nearest neighbors.

    Features are L2-normalized here, so the similarity is the cosine. It is computed in float64 (float32 on Apple's
    MPS, which has no float64) and rounded to steps of 2^-24. Therefore the result depends neither on the chunk sizes
    nor on the device, and duplicate images have equal similarities: the neighbor with the lowest index goes first,
    and of two classes with equal votes the lower id.

    Args:
        train_features (`torch.Tensor` of shape `(n, D)`): The bank, float.
        train_labels (`torch.Tensor` of shape `(n,)`): Class ids, integers in `0 .. num_classes - 1`.
        test_features (`torch.Tensor` of shape `(m, D)`): The queries, float, on the bank's device.
        k (`int` or `Sequence[int]`): One or several numbers of neighbors, all evaluated in one pass. Above n it means
            all n.
        temperature (`float`, defaults to 0.07): Above 0.
        num_classes (`int`, *optional*): C; defaults to the highest training label plus 1.
        query_chunk_size, bank_chunk_size (`int`): Rows compared at a time. Memory is bounded by their product (about
            24 bytes per pair) and by `query_chunk_size` times the number of classes that occur.

    Returns:
        `dict[int, torch.Tensor]`: For each k, int64 `[m, min(5, C)]`: the best classes, best first. A class without a
        vote is never listed; if fewer classes got votes, the row ends in -1.

    Raises:
        ValueError: For empty, non-finite or mismatched features, labels out of range, k < 1, or a
            temperature that is not finite and above 0.
    """
    ks = sorted({k} if isinstance(k, int) else set(k))
    check_votes(ks, temperature)
    _check_features("train_features", train_features)
    _check_features("test_features", test_features)
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"train_features are {train_features.shape[1]} wide and test_features {test_features.shape[1]}; "
            "both must come from the same model"
        )
    _check_labels("train_labels", train_labels, len(train_features))
    # Only the classes that occur take memory, whatever their numbers are.
    classes, train_labels = train_labels.to(train_features.device).unique(return_inverse=True)
    highest = int(classes[-1])
    num_classes = highest + 1 if num_classes is None else num_classes
    if highest >= num_classes:
        raise ValueError(f"train_labels hold class {highest}, but num_classes is {num_classes}")
    width = min(5, num_classes)
    rankings: dict[int, list[torch.Tensor]] = {k: [] for k in ks}
    for queries in test_features.split(query_chunk_size):
        similarities, indices = _nearest(train_features, queries, min(ks[-1], len(train_features)), bank_chunk_size)
        for k, ranking in _vote(similarities, train_labels[indices], ks, temperature, len(classes)).items():
            ranking = classes[ranking].where(ranking >= 0, -1)
            rankings[k].append(F.pad(ranking, (0, width - ranking.shape[1]), value=-1))
    return {k: torch.cat(chunks) for k, chunks in rankings.items()}


def check_votes(ks: Sequence[int], temperature: float) -> None:
    """Raise `ValueError` unless every k is at least 1 and the temperature is finite and above 0."""
    if not ks or min(ks) < 1:
        raise ValueError(f"k must be one or more integers of at least 1, not {', '.join(map(str, ks)) or 'none'}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a finite number above 0, not {temperature}")


def used_neighbors(ks: Iterable[int], bank_size: int) -> list[int]:
    """Return the numbers of neighbors that can vote, in ascending order: none of them is above `bank_size`."""
    return sorted({min(k, bank_size) for k in ks})


def knn_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    k: int | Sequence[int] = (10, 20, 100, 200),
    **options,
) -> dict[str, float]:
    """
    Return the accuracy of [`knn_classify`] in percent: `{"knn_10_top1": ..., "knn_10_top5": ..., "knn_20_top1": ...}`.

    Top-5 counts only classes that got a vote; with fewer than 5 such classes, the original's top-5 depends on how its
    sort orders the zeros. A k above the bank's size n counts as n: 200 of 120 images are reported as `knn_120_top1`.

    Args:
        train_features, train_labels, test_features, k: As for [`knn_classify`].
        test_labels (`torch.Tensor` of shape `(m,)`): Integers, at least 0. A class that the bank lacks is never
            right.
        **options: `temperature` and so on, as for [`knn_classify`].
    """
    _check_labels("test_labels", test_labels, len(test_features))
    metrics = {}
    _check_features("train_features", train_features)
    ks = used_neighbors([k] if isinstance(k, int) else k, len(train_features))
    rankings = knn_classify(train_features, train_labels, test_features, ks, **options)
    for neighbors, ranking in rankings.items():
        hits = ranking == test_labels.to(ranking.device)[:, None]
        metrics[f"knn_{neighbors}_top1"] = 100 * hits[:, 0].sum().item() / len(hits)
        metrics[f"knn_{neighbors}_top5"] = 100 * hits.any(dim=1).sum().item() / len(hits)
    return metrics


def _nearest(bank: torch.Tensor, queries: torch.Tensor, k: int, chunk_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return similarities and indices, `[q, k]`, of the k rows of a bank `[n, D]` nearest to each query `[q, D]`."""
    dtype = torch.float32 if bank.device.type == "mps" else torch.float64
    queries = F.normalize(queries.to(dtype), dim=1) * _SIMILARITY_STEPS
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=bank.device)
    for start in range(0, len(bank), chunk_size):
        chunk = F.normalize(bank[start : start + chunk_size].to(dtype), dim=1)
        # torch.topk orders equal values arbitrarily, but these keys are all different.
        index = torch.arange(start, start + len(chunk), device=bank.device)
        keys = (queries @ chunk.T).round_().long().mul_(_INDEX_RANGE).sub_(index)
        keys = torch.cat([best, keys.topk(min(k, len(chunk)), dim=1).values], dim=1)
        best = keys.topk(min(k, keys.shape[1]), dim=1).values
    steps = (best + _INDEX_RANGE - 1).div(_INDEX_RANGE, rounding_mode="floor")
    return steps.to(dtype) / _SIMILARITY_STEPS, steps * _INDEX_RANGE - best


def _vote(
    similarities: torch.Tensor, labels: torch.Tensor, ks: list[int], temperature: float, num_classes: int
) -> dict[int, torch.Tensor]:
    """Rank the classes for each k by the neighbors' similarities and labels, both `[q, K]`, nearest first."""
    # Relative to the nearest neighbor: the same ranking, and no overflow at a small temperature.
    weights = ((similarities - similarities[:, :1]) / temperature).exp()
    votes = weights.new_full((len(weights), num_classes), -1.0)  # -1 = no vote
    rankings = {}
    # One neighbor at a time: the sums are then the same on every device, and every smaller k is passed on the way.
    for neighbor in range(labels.shape[1]):
        column = labels[:, neighbor, None]
        total = votes.gather(1, column).clamp_min(0) + weights[:, neighbor, None]
        votes.scatter_(1, column, total)
        for k in ks:
            if neighbor + 1 == min(k, labels.shape[1]):
                ranked = votes.sort(dim=1, descending=True, stable=True)
                rankings[k] = ranked.indices.where(ranked.values >= 0, -1)[:, :5]
    return rankings


def _check_features(name: str, features: torch.Tensor) -> None:
    if features.ndim != 2 or not features.is_floating_point() or features.numel() == 0:
        raise ValueError(f"{name} must be a non-empty float tensor [n, D], not {features.dtype} {[*features.shape]}")
    if not features.isfinite().all():
        raise ValueError(f"{name} contain NaN or infinity; the model has diverged")


def _check_labels(name: str, labels: torch.Tensor, length: int) -> None:
    if labels.shape != (length,) or labels.is_floating_point():
        raise ValueError(f"{name} must be integers [{length}], not {labels.dtype} {[*labels.shape]}")
    if labels.min() < 0:
        raise ValueError(f"{name} hold {int(labels.min())}; unlabeled images (negative labels) cannot be scored")
