"""Batches of BEiT v2: the student's view, that of the frozen network if it is another one, and a mask per image."""

from collections.abc import Callable

import torch

from .collating import masked_positions, sample_mask_seeds, unreadable_lines
from .masking import BlockMaskGenerator


class Beitv2Collator:
    """
    Stacks the samples of a [`~hf_mim.data.datasets.ViewsDataset`] with [`~hf_mim.data.crop_views.CropViews`] and draws
    a mask for each.

    A mask depends on `(seed, epoch, index)` only.

    Args:
        mask_generator (`BlockMaskGenerator`): Draws the masks; its grid is that of the student's view.
        seed (`int`, defaults to 0): Seed, at least 0.
        make_samples (`Callable`, *optional*): For a stream, `StreamedViewsDataset.samples`: makes the samples of a
            batch from its rows.

    Returns (of a call):
        A dict with `pixel_values` (uint8 `[B, C, H, W]`), `bool_masked_pos` (bool `[B, N]`), `mask_indices` (int64
        `[M]`, its true entries) and, if the samples have a second view, `target_pixel_values` (uint8
        `[B, C, H2, W2]`). If images could not be read, `unreadable` has one line for each of them (`list[str]`).
    """

    def __init__(
        self,
        mask_generator: BlockMaskGenerator,
        seed: int = 0,
        make_samples: Callable[[list[dict]], list[dict]] | None = None,
    ):
        self.mask_generator, self.seed, self.make_samples = mask_generator, seed, make_samples

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor | list[str]]:
        if self.make_samples is not None:
            samples = self.make_samples(samples)
        masks = torch.from_numpy(self.mask_generator(sample_mask_seeds(self.seed, samples, 1)[:, 0])).flatten(1)
        batch = {
            "pixel_values": torch.stack([sample["view"] for sample in samples]),
            "bool_masked_pos": masks,
            "mask_indices": masked_positions(masks),
        }
        if "second_view" in samples[0]:
            batch["target_pixel_values"] = torch.stack([sample["second_view"] for sample in samples])
        return batch | unreadable_lines(samples)
