"""What the collators of all methods have in common."""

import numpy as np
import torch

from .masking import mask_seeds


def sample_mask_seeds(seed: int, samples: list[dict], views: int) -> np.ndarray:
    """Seeds of the masks of a batch, uint64 `[B, views]`, from `(seed, epoch, index, view)` of every sample."""
    # Where a stream begins again, a batch holds samples of two epochs.
    epochs, indices = (np.array([sample[key] for sample in samples]) for key in ("epoch", "index"))
    return mask_seeds(seed, epochs, indices, views)


def masked_positions(bool_masked_pos: torch.Tensor) -> torch.Tensor:
    """The true entries of masks bool `[..., N]`, counted over the whole batch: int64 `[M]`."""
    return bool_masked_pos.flatten().nonzero().squeeze(1)


def unreadable_lines(samples: list[dict]) -> dict[str, list[str]]:
    """`{"unreadable": one line for each image that could not be read}`, or nothing if all could."""
    lines = [line for sample in samples for line in sample.get("unreadable", ())]
    return {"unreadable": lines} if lines else {}
