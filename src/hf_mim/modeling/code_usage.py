"""How much of a codebook is in use, from how often each code was chosen."""

import torch


def code_statistics(counts: torch.Tensor) -> dict[str, float]:
    """Statistics of the use of K codes.

    Args:
        counts: `[K]`, how often each code was chosen; on any device.

    Returns:
        - `codebook_usage`: share of the codes that were chosen at all, 0 to 1.
        - `perplexity`: exp of the entropy of the choices, 1 (always the same code) to K (all equally often): so many
          codes chosen equally often are as hard to guess. 0 if nothing was chosen.
        - `dead_codes`: number of codes that were never chosen.
        - `majority_code`: share of the most frequent code among the choices, 0 to 1: what a guesser gets right who
          always says this code.

    Raises:
        ValueError: if `counts` is not one row of at least one number, or one of them is negative.
    """
    if counts.ndim != 1 or len(counts) == 0 or bool((counts < 0).any()):
        raise ValueError(f"counts must be one number >= 0 for each code, got shape {[*counts.shape]}")
    # On the CPU, where there is float64 in any case.
    counts = counts.cpu().double()
    dead = int((counts == 0).sum())
    shares = counts / counts.sum().clamp(min=1)
    return {
        "codebook_usage": 1 - dead / len(counts),
        "perplexity": float(torch.special.entr(shares).sum().exp()) if dead < len(counts) else 0.0,
        "dead_codes": dead,
        "majority_code": float(shares.max()),
    }
