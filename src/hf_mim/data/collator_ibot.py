"""Batches of iBOT: views stacked, one mask per global view."""

from collections.abc import Callable

import numpy as np
import torch

from .collating import masked_positions, sample_mask_seeds, unreadable_lines
from .masking import MaskGenerator


class IBotCollator:
    """
    Stacks the samples of a [`~hf_mim.data.datasets.ViewsDataset`] and draws a mask for every global view.

    A mask depends on `(seed, epoch, index, view)` only.

    Args:
        mask_generator (`MaskGenerator`): Draws the masks; its grid is that of a global view.
        seed (`int`, defaults to 0): Seed, at least 0.
        make_samples (`Callable`, *optional*): For a stream, `StreamedViewsDataset.samples`: makes the samples of a
            batch from its rows.

    Returns (of a call):
        A dict with `pixel_values` (uint8 `[B, G, C, H, W]`), `bool_masked_pos` (bool `[B, G, N]`), `mask_indices`
        (int64 `[M]`, its true entries), `color_parameters` (NumPy `[B, G+L, 8]`, for
        [`~hf_mim.data.color.color_views`]) and, with local views, `local_pixel_values` (uint8 `[B, L, C, h, w]`). If
        images could not be read, `unreadable` has one line for each of them (`list[str]`).
    """

    def __init__(
        self,
        mask_generator: MaskGenerator,
        seed: int = 0,
        make_samples: Callable[[list[dict]], list[dict]] | None = None,
    ):
        self.mask_generator, self.seed, self.make_samples = mask_generator, seed, make_samples

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor | np.ndarray | list[str]]:
        if self.make_samples is not None:
            samples = self.make_samples(samples)
        pixel_values = torch.stack([sample["global_views"] for sample in samples])
        batch_size, num_globals = pixel_values.shape[:2]
        seeds = sample_mask_seeds(self.seed, samples, num_globals)
        masks = torch.from_numpy(self.mask_generator(seeds.ravel(), samples[0]["epoch"]))
        masks = masks.flatten(1).unflatten(0, (batch_size, num_globals))
        batch = {
            "pixel_values": pixel_values,
            "bool_masked_pos": masks,
            "mask_indices": masked_positions(masks),
            # A NumPy array stays on the host, where the colour operations are sorted out.
            "color_parameters": np.stack([sample["color_parameters"] for sample in samples]),
        }
        local_views = torch.stack([sample["local_views"] for sample in samples])
        if local_views.shape[1]:
            batch["local_pixel_values"] = local_views
        return batch | unreadable_lines(samples)
