"""Show what a training hides: views with their masked patches in gray."""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from .curves import save_figure


GRAY = 0.55


def plot_masks(pixel_values: torch.Tensor, masks: torch.Tensor, path: str | Path) -> Figure:
    """
    Draw one row per image: each of its views, with masked patches in gray.

    Args:
        pixel_values (`torch.Tensor`): Views, uint8 `[B, C, H, W]`, or `[B, G, C, H, W]` for several views per image.
        masks (`torch.Tensor`): bool `[B, N]` or `[B, G, N]`, True = masked, row-major over a grid of square patches.
        path (`str` or `Path`): Picture to write (`.png`, `.pdf`, `.svg`), atomically.

    Returns:
        `Figure`: The figure.

    Raises:
        ValueError: If the patches of the masks are not square in these views.
    """
    if pixel_values.ndim == 4:
        pixel_values, masks = pixel_values[:, None], masks[:, None]
    height, width = pixel_values.shape[-2:]
    side = math.isqrt(height * width // masks.shape[-1])
    if (height // side) * (width // side) != masks.shape[-1]:
        raise ValueError(f"{masks.shape[-1]} patches do not divide views of {height}x{width} pixels into squares")
    cells = masks.unflatten(-1, (height // side, width // side))
    hidden = cells.repeat_interleave(side, -2).repeat_interleave(side, -1).numpy()
    pictures = pixel_values.permute(0, 1, 3, 4, 2).numpy()[..., :3] / 255
    if pictures.shape[-1] == 1:
        pictures = pictures.repeat(3, axis=-1)
    pictures = np.where(hidden[..., None], GRAY, pictures)

    rows, columns = pictures.shape[:2]
    figure = Figure(figsize=(1.9 * columns, 2.15 * rows), layout="constrained")
    for axes, views, masked in zip(figure.subplots(rows, columns, squeeze=False), pictures, masks, strict=True):
        for plot, view, mask in zip(axes, views, masked, strict=True):
            plot.imshow(view, interpolation="nearest")
            plot.set_axis_off()
            plot.set_title(f"{mask.float().mean():.0%} masked", fontsize=9)
    save_figure(figure, path)
    return figure
