"""Batches of VQ-KD: one view of each image."""

from collections.abc import Callable

import torch

from .collating import unreadable_lines


class VQKDCollator:
    """
    Stacks the samples of a [`~hf_mim.data.datasets.ViewsDataset`] with [`~hf_mim.data.crop_views.CropViews`].

    Args:
        make_samples (`Callable`, *optional*): For a stream, `StreamedViewsDataset.samples`: makes the samples of a
            batch from its rows.

    Returns (of a call):
        A dict with `pixel_values` (uint8 `[B, C, H, W]`). If images could not be read, `unreadable` has one line for
        each of them (`list[str]`).
    """

    def __init__(self, make_samples: Callable[[list[dict]], list[dict]] | None = None):
        self.make_samples = make_samples

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor | list[str]]:
        if self.make_samples is not None:
            samples = self.make_samples(samples)
        return {"pixel_values": torch.stack([sample["view"] for sample in samples])} | unreadable_lines(samples)
