"""Where the CLS token looks: attention maps of the last layer, one per head."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel

from ..utils.vision import forward_options
from .curves import save_figure
from .encoders import eager_evaluation, patch_grid, patch_size
from .inputs import undo_normalization


@torch.no_grad()
def cls_attention(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Compute the attention of the CLS token to the patches in the last layer (Caron et al. 2021, figure 1).

    The model runs in evaluation mode and with the eager implementation, the only one that returns attention; mode and
    implementation are restored afterwards.

    Args:
        model (`PreTrainedModel`): A ViT-like encoder whose output `[B, T, D]` is CLS, any other special tokens, then
            the patches.
        pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Normalized images, H and W divisible by the patch size.

    Returns:
        `torch.Tensor` of shape `(B, heads, h, w)`: float32 on the model's device, h and w in patches. The values lie
        in [0, 1]; a map sums to 1 minus the attention to the CLS token itself and to other special tokens.

    Raises:
        ValueError: If the model has no CLS token or no global attention, or the image size does not fit.
    """
    size, grid = patch_size(model), patch_grid(model, pixel_values)
    height, width = pixel_values.shape[-2:]
    if height % size[0] or width % size[1]:
        patch = f"{size[0]}" if size[0] == size[1] else f"{size[0]}x{size[1]}"
        raise ValueError(f"image size {height}x{width} is not a multiple of the patch size {patch}")
    options = forward_options(model, len(pixel_values), grid)
    with eager_evaluation(model):
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
    """
    Draw one row per image: the image as the model sees it, then the attention of each head on top of it.

    The maps of a row share a color scale in multiples of uniform attention (1 / number of patches): at 1, a patch gets
    as much attention as if all got the same.

    Args:
        model (`PreTrainedModel`): As for [`cls_attention`].
        images (`list[PIL.Image.Image]`): Images in the mode that the processor expects (RGB for most models).
        image_processor (`BaseImageProcessor`): Image processor of the model.
        path (`str` or `Path`): Picture to write (`.png`, `.pdf`, `.svg`), atomically.
        max_heads (`int`, defaults to 6): Draw only the first heads, at most this many.

    Returns:
        `Figure`: The figure.

    Raises:
        ValueError: For an empty list of images, `max_heads` below 1, or a model that [`cls_attention`] refuses.
    """
    if not images or max_heads < 1:
        raise ValueError(f"attention needs at least one image and one head, not {len(images)} and {max_heads}")
    pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
    maps = cls_attention(model, pixel_values)[:, :max_heads].cpu().numpy()
    maps = maps * maps[0, 0].size
    pictures = undo_normalization(pixel_values, image_processor)

    rows, columns = len(images), 1 + maps.shape[1]
    figure = Figure(figsize=(1.9 * columns + 0.9, 2.15 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, picture, heads in zip(grid, pictures, maps, strict=True):
        height, width = picture.shape[:2]
        for plot in axes:
            plot.imshow(picture, cmap="gray", vmin=0, vmax=1)
            plot.set_axis_off()
        axes[0].set_title("image", fontsize=9)
        for number, (plot, head) in enumerate(zip(axes[1:], heads, strict=True)):
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            shown = plot.imshow(
                head, cmap="viridis", vmin=0, vmax=heads.max(), alpha=0.8, interpolation="nearest", extent=extent
            )
            plot.set_title(f"head {number + 1}", fontsize=9)
        bar = figure.colorbar(shown, ax=axes, fraction=0.03, pad=0.01)
        bar.set_label("times uniform attention", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    save_figure(figure, path)
    return figure
