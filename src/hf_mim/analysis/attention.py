"""Where the CLS token looks: attention maps of the last layer, one per head."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel

from .curves import save_figure
from .encoders import eager_evaluation, forward_options
from .inputs import undo_normalisation


@torch.no_grad()
def cls_attention(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Attention of the CLS token to the patches in the last layer (Caron et al. 2021, figure 1).

    The model runs in evaluation mode and with the eager implementation, the only one that returns attention; mode and
    implementation are put back afterwards.

    Args:
        model: a ViT-like encoder of transformers, its output `[B, T, D]` being CLS, any other tokens, then patches.
        pixel_values: normalised images `[B, C, H, W]`, H and W divisible by the patch size.

    Returns:
        float32 `[B, heads, h, w]` on the model's device, h and w in patches; values in [0, 1], whose sum per map is
        what the CLS token does not give to itself (and to other special tokens).

    Raises:
        ValueError: if the model has no CLS token or no global attention, or the image size does not fit.
    """
    patch_size = getattr(model.config, "patch_size", None)
    if not isinstance(patch_size, int):
        raise ValueError(
            f"{type(model).__name__} has no (single) patch size in its configuration; attention maps need a ViT"
        )
    height, width = pixel_values.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(f"image size {height}x{width} is not a multiple of the patch size {patch_size}")
    grid = (height // patch_size, width // patch_size)
    with eager_evaluation(model):
        options = forward_options(model, pixel_values)
        output = model(pixel_values.to(model.device, model.dtype), output_attentions=True, **options)

    attention = output.attentions[-1] if output.attentions else torch.empty(0)
    tokens = attention.shape[-1]
    num_patches = grid[0] * grid[1]
    if attention.ndim != 4 or attention.shape[0] != len(pixel_values) or tokens <= num_patches:
        raise ValueError(
            f"{type(model).__name__} gives attention {[*attention.shape]} for {num_patches} patches; "
            "attention maps need a ViT with a CLS token"
        )
    return attention[:, :, 0, tokens - num_patches :].unflatten(2, grid).float()


def plot_attention(
    model: PreTrainedModel,
    images: list[Image.Image],
    image_processor: BaseImageProcessor,
    path: str | Path,
    max_heads: int = 6,
) -> Figure:
    """Draw one row per image: the picture as the model sees it, then `cls_attention` of each head laid over it.

    Each map has a colour scale of its own, from 0 to its highest value, which its title gives as a multiple of even
    attention (1 / number of patches).

    Args:
        images: pictures in the mode that the processor expects (RGB for most models).
        path: picture to write (`.png`, `.pdf`, `.svg`); written whole or not at all.
        max_heads: the first so many heads are drawn.

    Returns:
        The figure.

    Raises:
        ValueError: for an empty list of images, max_heads < 1, or a model that `cls_attention` refuses.
    """
    if not images or max_heads < 1:
        raise ValueError(f"attention needs at least one image and one head, not {len(images)} and {max_heads}")
    pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
    maps = cls_attention(model, pixel_values)[:, :max_heads].cpu().numpy()
    pictures = undo_normalisation(pixel_values, image_processor)

    rows, columns = len(images), 1 + maps.shape[1]
    figure = Figure(figsize=(1.9 * columns, 2.15 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, picture, heads in zip(grid, pictures, maps, strict=True):
        height, width = picture.shape[:2]
        for plot in axes:
            plot.imshow(picture, cmap="gray", vmin=0, vmax=1)
            plot.set_axis_off()
        axes[0].set_title("image", fontsize=9)
        for number, (plot, head) in enumerate(zip(axes[1:], heads, strict=True)):
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            plot.imshow(
                head, cmap="viridis", vmin=0, vmax=head.max(), alpha=0.8, interpolation="nearest", extent=extent
            )
            plot.set_title(f"head {number}, max {head.max() * head.size:.1f}x", fontsize=9)
    save_figure(figure, path)
    return figure
