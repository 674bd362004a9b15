"""Batches of dBOT: one view of each image, and a number per patch that decides which ones the student sees."""

from collections.abc import Callable

import numpy as np
import torch

from .collating import sample_mask_seeds, unreadable_lines
from .masking import uniforms


class DBotCollator:
    """
    Stacks the samples of a [`~hf_mim.data.datasets.ViewsDataset`] with [`~hf_mim.data.crop_views.CropViews`] and draws
    the noise by which patches are kept (`models_mae.py`, `random_masking`).

    The noise of a sample depends on `(seed, epoch, index)` only.

    Args:
        seed (`int`): Seed, at least 0.
        num_patches (`int`): Patches N of a view, at least 1.
        make_samples (`Callable`, *optional*): For a stream, `StreamedViewsDataset.samples`: makes the samples of a
            batch from its rows.

    Returns (of a call):
        A dict with `pixel_values` (uint8 `[B, C, H, W]`) and `noise` (float32 `[B, N]`, uniform in [0, 1]). If images
        could not be read, `unreadable` has one line for each of them (`list[str]`).

    Raises:
        ValueError: If there are no patches.
    """

    def __init__(self, seed: int, num_patches: int, make_samples: Callable[[list[dict]], list[dict]] | None = None):
        if num_patches < 1:
            raise ValueError(f"num_patches must be at least 1, got {num_patches}")
        self.seed, self.num_patches, self.make_samples = seed, num_patches, make_samples

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor | list[str]]:
        if self.make_samples is not None:
            samples = self.make_samples(samples)
        seeds = sample_mask_seeds(self.seed, samples, 1)[:, 0]
        noise = torch.from_numpy(uniforms(seeds, np.arange(self.num_patches)))
        batch = {"pixel_values": torch.stack([sample["view"] for sample in samples]), "noise": noise.float()}
        return batch | unreadable_lines(samples)
