"""Collators: stack the samples of a dataset of views, and draw a mask or noise for every view."""

from collections.abc import Callable

import numpy as np
import torch

from .masking import BlockMaskGenerator, MaskGenerator, mask_seeds, uniforms


class IBotCollator:
    """
    Stack the samples of a [`~hf_mim.data.datasets.ViewsDataset`] and draw a mask for every global view.

    A mask depends only on `(seed, epoch, index, view)`.

    Args:
        mask_generator (`MaskGenerator`): Draws the masks; its grid is that of a global view.
        seed (`int`, defaults to 0): Seed, at least 0.
        make_samples (`Callable`, *optional*): For a stream, `StreamedViewsDataset.samples`: makes the samples of a
            batch from its rows.

    Returns (when called):
        `dict`: `pixel_values` (uint8 `[B, G, C, H, W]`), `bool_masked_pos` (bool `[B, G, N]`), `mask_indices`
        (int64 `[M]`, positions of its true entries), `color_parameters` (NumPy `[B, G+L, 8]`, for
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
            # A NumPy array stays on the host, where the color operations are scheduled.
            "color_parameters": np.stack([sample["color_parameters"] for sample in samples]),
        }
        local_views = torch.stack([sample["local_views"] for sample in samples])
        if local_views.shape[1]:
            batch["local_pixel_values"] = local_views
        return batch | unreadable_lines(samples)


class Beitv2Collator:
    """
    Stack the samples of a [`~hf_mim.data.datasets.ViewsDataset`] with [`~hf_mim.data.views.CropViews`] and draw
    a mask for each.

    A mask depends only on `(seed, epoch, index)`.

    Args:
        mask_generator (`BlockMaskGenerator`): Draws the masks; its grid is that of the student's view.
        seed (`int`, defaults to 0): Seed, at least 0.
        make_samples (`Callable`, *optional*): For a stream, `StreamedViewsDataset.samples`: makes the samples of a
            batch from its rows.

    Returns (when called):
        `dict`: `pixel_values` (uint8 `[B, C, H, W]`), `bool_masked_pos` (bool `[B, N]`), `mask_indices` (int64
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


class DBotCollator:
    """
    Stack the samples of a [`~hf_mim.data.datasets.ViewsDataset`] with [`~hf_mim.data.views.CropViews`] and draw
    the noise that decides which patches are kept (`random_masking` in `models_mae.py`).

    The noise of a sample depends only on `(seed, epoch, index)`.

    Args:
        seed (`int`): Seed, at least 0.
        num_patches (`int`): Patches N of a view, at least 1.
        make_samples (`Callable`, *optional*): For a stream, `StreamedViewsDataset.samples`: makes the samples of a
            batch from its rows.

    Returns (when called):
        `dict`: `pixel_values` (uint8 `[B, C, H, W]`) and `noise` (float32 `[B, N]`, uniform in [0, 1]). If images
        could not be read, `unreadable` has one line for each of them (`list[str]`).

    Raises:
        ValueError: If `num_patches` is below 1.
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


class VQKDCollator:
    """
    Stack the samples of a [`~hf_mim.data.datasets.ViewsDataset`] with [`~hf_mim.data.views.CropViews`].

    Args:
        make_samples (`Callable`, *optional*): For a stream, `StreamedViewsDataset.samples`: makes the samples of a
            batch from its rows.

    Returns (when called):
        `dict`: `pixel_values` (uint8 `[B, C, H, W]`). If images could not be read, `unreadable` has one line for
        each of them (`list[str]`).
    """

    def __init__(self, make_samples: Callable[[list[dict]], list[dict]] | None = None):
        self.make_samples = make_samples

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor | list[str]]:
        if self.make_samples is not None:
            samples = self.make_samples(samples)
        return {"pixel_values": torch.stack([sample["view"] for sample in samples])} | unreadable_lines(samples)


def sample_mask_seeds(seed: int, samples: list[dict], views: int) -> np.ndarray:
    """Return the seeds of a batch's masks, uint64 `[B, views]`, from `(seed, epoch, index, view)` of every sample."""
    # Where a stream restarts, a batch has samples of two epochs.
    epochs, indices = (np.array([sample[key] for sample in samples]) for key in ("epoch", "index"))
    return mask_seeds(seed, epochs, indices, views)


def masked_positions(bool_masked_pos: torch.Tensor) -> torch.Tensor:
    """Return the positions of the true entries of masks, bool `[..., N]`, in the flattened batch: int64 `[M]`."""
    return bool_masked_pos.flatten().nonzero().squeeze(1)


def unreadable_lines(samples: list[dict]) -> dict[str, list[str]]:
    """Return `{"unreadable": one line for each image that could not be read}`, or `{}` if all could be read."""
    lines = [line for sample in samples for line in sample.get("unreadable", ())]
    return {"unreadable": lines} if lines else {}
