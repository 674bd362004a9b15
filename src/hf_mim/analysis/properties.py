"""
Two properties of the blocks of a ViT: how far their heads look, and how many directions their patch features fill.

Source: `analysis/analysis.py` of the dBOT code (Liu et al. 2022, "Exploring Target Representations for Masked
Autoencoders"), which supports only ViT-B/16 at 224 pixels.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from ..modeling.layers import at_least_float32
from ..utils.vision import count_prefix
from .encoders import find_blocks, patch_grid, patch_size, run_with_hooks


def distance_matrix(grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """
    Return the distances in pixels between the centers of all patches, in row-major order.

    Args:
        grid (`tuple[int, int]`): Rows and columns of patches.
        size (`tuple[int, int]`): Height and width of a patch in pixels.

    Returns:
        `torch.Tensor` of shape `(N, N)`: float64, with N = rows x columns.
    """
    rows, columns = (torch.arange(count, dtype=torch.float64) * step for count, step in zip(grid, size, strict=True))
    places = torch.cartesian_prod(rows, columns)
    return (places[:, None] - places).square().sum(dim=2).sqrt()


def attention_distances(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Compute the mean attention distance of every head: the mean over patches i of the sum over patches j of
    A[i, j] d(i, j).

    A is the attention after the softmax, and d the distance in pixels of the input image. As in the original, the
    rows and columns of CLS and other special tokens are dropped and the rows are not renormalized: attention to
    special tokens counts as distance 0. The original's unit of 16 pixels per patch is the patch size here.

    The attention of a block is freed before the next block runs.

    Args:
        model (`PreTrainedModel`): A plain ViT of transformers or an encoder of this package, with or without CLS,
            distillation or register tokens in front of the patches.
        pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Normalized images.

    Returns:
        `torch.Tensor` of shape `(B, layers, heads)`: float64 on the CPU, in pixels. The reported figure is the mean
        over all images. The original averages the means of batches, which differs if the last batch is shorter.

    Raises:
        ValueError: If the model is not a plain ViT, returns no attention, or returns values that are not finite.
    """
    grid = patch_grid(model, pixel_values)
    distances = distance_matrix(grid, patch_size(model))
    blocks = find_blocks(model)
    found: dict[int, torch.Tensor] = {}

    def hook_of(number: int) -> Callable:
        def measure(module: nn.Module, arguments: tuple, output: torch.Tensor | tuple) -> None:
            # The attention module returns first; modules around it may return the same weights again.
            weights = None if number in found else _attention_weights(output, len(pixel_values))
            if weights is None:
                return
            prefix = count_prefix(model, weights.shape[-1], grid)
            patches = at_least_float32(weights[:, :, prefix:, prefix:])
            patches = patches * distances.to(weights.device, patches.dtype)
            found[number] = patches.sum(dim=3).cpu().double().mean(dim=2)

        return measure

    hooks = [(module, hook_of(number)) for number, block in enumerate(blocks) for module in block.modules()]
    run_with_hooks(model, pixel_values, hooks)
    if len(found) < len(blocks):
        raise ValueError(
            f"{type(model).__name__} gives no attention between all of its tokens; attention distances need a plain "
            "ViT, without windows or stages"
        )
    return _finite(model, torch.stack([found[number] for number in range(len(blocks))], dim=1))


def even_attention_distance(model: PreTrainedModel, pixel_values: torch.Tensor) -> float:
    """
    Return the value of [`attention_distances`], in pixels, for uniform attention over all tokens.

    Raises:
        ValueError: If the model is not a plain ViT.
    """
    grid = patch_grid(model, pixel_values)
    tokens = []

    def count(module: nn.Module, arguments: tuple, output: torch.Tensor | tuple) -> None:
        tokens.append(_states(model, output).shape[1])

    run_with_hooks(model, pixel_values[:1], [(find_blocks(model)[0], count)])
    count_prefix(model, tokens[0], grid)
    return distance_matrix(grid, patch_size(model)).mean().item() * grid[0] * grid[1] / tokens[0]


def singular_value_shares(model: PreTrainedModel, pixel_values: torch.Tensor, top_k: int = 5) -> torch.Tensor:
    """
    Compute the share of the largest singular values of an image's patch features in the sum of all, for every block.

    The matrix `[N, D]` of an image holds the outputs of the block for the patches, each scaled to length 1. Special
    tokens are dropped, and the final norm is not applied, not even after the last block.

    Args:
        model (`PreTrainedModel`): As for [`attention_distances`].
        pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Normalized images.
        top_k (`int`, defaults to 5): K, the number of singular values.

    Returns:
        `torch.Tensor` of shape `(B, layers, K)`: float64 on the CPU. Entry k is the sum of the k+1 largest values
        divided by the sum of all, in (0, 1].

    Raises:
        ValueError: If the model is not a plain ViT, or its features are not finite or have fewer than `top_k`
            directions.
    """
    grid = patch_grid(model, pixel_values)
    shares = []

    def measure(module: nn.Module, arguments: tuple, output: torch.Tensor | tuple) -> None:
        states = _states(model, output)
        patches = states[:, count_prefix(model, states.shape[1], grid) :]
        limit = min(patches.shape[1:])
        if not 1 <= top_k <= limit:
            raise ValueError(f"top_k must lie in 1..{limit} (the smaller of patches and channels), not {top_k}")
        patches = nn.functional.normalize(_finite(model, patches).double(), dim=2)
        # Eigenvalues of the Gram matrix are much faster than an SVD, and in float64 as exact as an SVD in float32.
        if patches.shape[1] > patches.shape[2]:
            patches = patches.mT
        squares = torch.linalg.eigvalsh(patches @ patches.mT).flip(1)
        values = squares.clamp(min=0).sqrt()
        shares.append((values[:, :top_k].cumsum(dim=1) / values.sum(dim=1, keepdim=True)).cpu())

    run_with_hooks(model, pixel_values, [(block, measure) for block in find_blocks(model)])
    return torch.stack(shares, dim=1)


def _states(model: PreTrainedModel, output: torch.Tensor | tuple) -> torch.Tensor:
    """Return the tokens `[B, T, D]` in the output of a block."""
    states = output[0] if isinstance(output, tuple) else output
    if states.ndim != 3:
        raise ValueError(f"the blocks of {type(model).__name__} return {[*states.shape]}: it is not a plain ViT")
    return states


def _attention_weights(output: object, num_images: int) -> torch.Tensor | None:
    """Return the attention `[num_images, heads, T, T]` in a module's output; within windows, it has more images."""
    weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    if not isinstance(weights, torch.Tensor) or weights.ndim != 4:
        return None
    is_global = weights.shape[0] == num_images and weights.shape[2] == weights.shape[3]
    return weights if is_global else None


def _finite(model: PreTrainedModel, values: torch.Tensor) -> torch.Tensor:
    if not values.isfinite().all():
        raise ValueError(f"{type(model).__name__} gives values that are not finite")
    return values
