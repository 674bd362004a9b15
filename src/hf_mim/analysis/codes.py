"""Show what the codes of a visual tokenizer stand for: patches that share a code, and how often each code is used."""

import math
from pathlib import Path

import datasets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..modeling.modeling_vqkd import VQKDModel
from ..modeling.quantizer_vqkd import code_statistics
from .curves import save_figure
from .inputs import process_images, undo_normalization


# Fraction of the drawn codes that are rare; the others are the most used ones.
RARE_SHARE = 0.25
# Opacity of the surroundings of a patch, half a patch on every side.
CONTEXT_STRENGTH = 0.5


@torch.no_grad()
def encode_images(
    model: VQKDModel,
    dataset: datasets.Dataset,
    image_processor: BaseImageProcessor,
    batch_size: int = 64,
    progress: bool = True,
) -> np.ndarray:
    """
    Compute the codes of all patches of all images, with the model in evaluation mode.

    Args:
        model (`VQKDModel`): The tokenizer.
        dataset (`Dataset`): Has a column `image`, as [`~hf_mim.data.sources.load_image_dataset`] returns.
        image_processor (`BaseImageProcessor`): Must resize all images to one size.
        batch_size (`int`, defaults to 64): Images per forward pass.
        progress (`bool`, defaults to `True`): Show a progress bar.

    Returns:
        `np.ndarray` of shape `(images, h, w)`: int64, h and w in patches.

    Raises:
        UnreadableImageError, OSError: For an image that cannot be read; the message names it.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    codes = []
    try:
        starts = range(0, len(dataset), batch_size)
        for start in tqdm(starts, desc="codes", unit="batch", disable=None if progress else True, leave=False):
            rows = range(start, min(start + batch_size, len(dataset)))
            pixel_values = process_images(dataset, rows, image_processor, model.config.num_channels)
            grid = (side // model.config.patch_size for side in pixel_values.shape[-2:])
            codes.append(model.encode(pixel_values.to(model.device, model.dtype)).unflatten(1, tuple(grid)).cpu())
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(codes).numpy()


def choose_codes(counts: np.ndarray, num_codes: int, patches_per_code: int) -> tuple[list[int], list[int]]:
    """
    Choose the codes to draw: the most used ones, and a quarter that are rare but, where possible, fill their row.

    Args:
        counts (`np.ndarray` of shape `(K,)`): How often each code is used.
        num_codes (`int`): Number of codes to choose.
        patches_per_code (`int`): Patches in a full row.

    Returns:
        `tuple[list[int], list[int]]`: The most used and the rare codes, each in descending order of use; together
        `num_codes`, or all codes in use.
    """
    by_use = np.argsort(-counts, kind="stable")[: (counts > 0).sum()]
    rare = round(RARE_SHARE * num_codes) if len(by_use) > num_codes else 0
    frequent, others = by_use[: num_codes - rare], by_use[num_codes - rare :]
    filling = others[counts[others] >= patches_per_code]
    # If too few fill their row, as with few images, take the most frequent of the others.
    chosen = filling[len(filling) - rare :] if len(filling) >= rare else others[:rare]
    return frequent.tolist(), chosen.tolist()


def choose_patches(codes: np.ndarray, code: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw up to `count` patches with a code, from as many images as possible: (image, row, column), int `[n, 3]`."""
    places = rng.permutation(np.argwhere(codes == code))
    is_first = np.zeros(len(places), dtype=bool)
    is_first[np.unique(places[:, 0], return_index=True)[1]] = True
    return np.concatenate([places[is_first], places[~is_first]])[:count]


def plot_codes(
    model: VQKDModel,
    dataset: datasets.Dataset,
    image_processor: BaseImageProcessor,
    codes: np.ndarray,
    path: str | Path,
    num_codes: int = 32,
    patches_per_code: int = 12,
) -> Figure:
    """
    Draw one row per code: patches that have it, outlined, each with its faded surroundings.

    Args:
        model (`VQKDModel`): The tokenizer.
        dataset (`Dataset`): Has a column `image`.
        image_processor (`BaseImageProcessor`): Image processor of the tokenizer.
        codes (`np.ndarray` of shape `(images, h, w)`): Result of [`encode_images`] for this dataset.
        path (`str` or `Path`): Picture to write (`.png`, `.pdf`, `.svg`), atomically.
        num_codes (`int`, defaults to 32): Maximum number of codes: three quarters the most used, the others rare.
        patches_per_code (`int`, defaults to 12): Maximum number of patches per code; always the same ones, from as
            many images as possible.

    Returns:
        `Figure`: The figure.

    Raises:
        ValueError: For fewer than one code or patch.
    """
    if num_codes < 1 or patches_per_code < 1:
        raise ValueError(f"num_codes and patches_per_code must be at least 1, not {num_codes} and {patches_per_code}")
    counts = np.bincount(codes.ravel(), minlength=model.config.codebook_size)
    frequent, rare = choose_codes(counts, num_codes, patches_per_code)
    rng = np.random.default_rng(0)
    places = {code: choose_patches(codes, code, patches_per_code, rng) for code in (*frequent, *rare)}
    thumbnails = _cut_out(model, dataset, image_processor, places)

    columns = 2 if len(places) > 8 else 1
    rows = math.ceil(len(places) / columns)
    size = max(5, columns * (0.6 * patches_per_code + 1.2)), 0.62 * rows + 0.5
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (code, pictures) in zip(grid.T.flat, thumbnails.items(), strict=False):
        _draw_row(axes, pictures, model.config.patch_size, patches_per_code)
        label = f"code {code}\n{counts[code]} x" + ("\n(rare)" if code in rare else "")
        axes.text(-0.02, 0.5, label, ha="right", va="center", fontsize=7, transform=axes.transAxes)
    title = f"the {len(frequent)} most used codes" + (f" and {len(rare)} rare" if rare else "")
    figure.suptitle(f"{title}, in patches of {len(codes)} images", fontsize=10)
    save_figure(figure, path)
    return figure


def plot_usage(counts: np.ndarray, path: str | Path) -> Figure:
    """
    Draw how often each code is used, the most used first, and write the picture.

    Args:
        counts (`np.ndarray` of shape `(K,)`): How often each code is used; at least one is.
        path (`str` or `Path`): Picture to write (`.png`, `.pdf`, `.svg`), atomically.

    Returns:
        `Figure`: The figure.
    """
    statistics = code_statistics(torch.from_numpy(counts))
    used, total = len(counts) - statistics["dead_codes"], counts.sum()
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.stairs(np.sort(counts)[::-1][:used], np.arange(used + 1), fill=True, baseline=0.5, color="tab:blue")
    axes.axhline(total / len(counts), color="tab:orange", linewidth=1.2, label="if all codes were used equally often")
    if statistics["dead_codes"]:
        axes.axvspan(used, len(counts), color="0.9", label=f"{statistics['dead_codes']} codes without a patch")
    axes.set_yscale("log")
    axes.set(xlim=(0, len(counts)), ylim=(0.5, None), xlabel="codes, most used first", ylabel="patches with this code")
    axes.set_title(
        f"{used} of {len(counts)} codes used ({100 * statistics['codebook_usage']:.1f} %) by {total} patches, "
        f"perplexity {statistics['perplexity']:.1f}",
        fontsize=10,
    )
    axes.legend(fontsize=8, loc="upper right")
    axes.grid(alpha=0.3)
    save_figure(figure, path)
    return figure


def _cut_out(
    model: VQKDModel,
    dataset: datasets.Dataset,
    image_processor: BaseImageProcessor,
    places: dict[int, np.ndarray],
) -> dict[int, list[np.ndarray]]:
    """Cut out the patches at (image, row, column) of every code, with their faded surroundings."""
    rows = np.unique(np.concatenate(list(places.values()))[:, 0])
    patch, context = model.config.patch_size, model.config.patch_size // 2
    pictures = {}
    for row in rows.tolist():
        picture = undo_normalization(
            process_images(dataset, [row], image_processor, model.config.num_channels), image_processor
        )[0]
        if picture.ndim == 2:
            picture = picture[..., None].repeat(3, axis=2)
        # White beyond the image.
        pictures[row] = np.pad(picture, ((context, context), (context, context), (0, 0)), constant_values=1.0)
    thumbnails: dict[int, list[np.ndarray]] = {}
    for code, found in places.items():
        thumbnails[code] = []
        for row, top, left in found.tolist():
            view = pictures[row][top * patch :, left * patch :][: patch + 2 * context, : patch + 2 * context]
            faded = 1 - CONTEXT_STRENGTH * (1 - view)
            inside = slice(context, context + patch)
            faded[inside, inside] = view[inside, inside]
            thumbnails[code].append(faded)
    return thumbnails


def _draw_row(axes: Axes, pictures: list[np.ndarray], patch: int, places: int) -> None:
    """Draw pictures `[S, S, 3]` side by side, in a row of `places`, and outline the patch in the middle of each."""
    side = len(pictures[0])
    step = side + max(1, side // 12)
    strip = np.ones((side, places * step, 3))
    outlines = []
    for number, picture in enumerate(pictures):
        left = number * step
        strip[:, left : left + side] = picture
        margin = patch // 2 - 0.5  # the center of the first pixel is at 0
        outlines.append(Rectangle((left + margin, margin), patch, patch))
    axes.imshow(strip)
    axes.add_collection(PatchCollection(outlines, facecolor="none", edgecolor="crimson", linewidth=0.8))
