"""
Two properties of the blocks of a ViT: how far they look and how many directions their patch features fill.

Source: `analysis/analysis.py` of the dBOT code (Liu et al. 2022, "Exploring Target Representations for Masked
Autoencoders"; SPEC section 9), which knows ViT-B/16 at 224 pixels only.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from .encoders import count_prefix, find_blocks, patch_grid, patch_size, run_with_hooks


def distance_matrix(grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Distances in pixels between the centres of all patches, row after row.

    Args:
        grid: rows and columns of patches.
        size: height and width of a patch in pixels.

    Returns:
        float64 `[N, N]`, N = rows x columns.
    """
    rows, columns = (torch.arange(count, dtype=torch.float64) * step for count, step in zip(grid, size, strict=True))
    places = torch.cartesian_prod(rows, columns)
    return (places[:, None] - places).square().sum(dim=2).sqrt()


def attention_distances(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Mean attention distance of every head: the mean over patches i of the sum over patches j of A[i, j] d(i, j).

    A is the attention after the softmax and d the distance in pixels of the input image. As in the original, the rows
    and columns of CLS and other special tokens are left out and the rows are not normalised again: what a patch gives
    to special tokens counts as distance 0. The original's unit of 16 pixels per patch is the patch size here.

    The attention of a block is given up before the next one runs.

    Args:
        model: a plain ViT of transformers, with or without CLS, distillation or register tokens in front of the
            patches, or the encoder of one of this package.
        pixel_values: normalised images `[B, C, H, W]`.

    Returns:
        float64 `[B, layers, heads]` on the CPU, in pixels. The mean over all images is the measure; the original
        takes the mean over batches of the means over their images, which differs if the last batch is shorter.

    Raises:
        ValueError: if the model is no plain ViT, gives no attention, or gives one that is not finite.
    """
    grid = patch_grid(model, pixel_values)
    distances = distance_matrix(grid, patch_size(model))
    blocks = find_blocks(model)
    found: dict[int, torch.Tensor] = {}

    def hook_of(number: int) -> Callable:
        def measure(module: nn.Module, arguments: tuple, output: torch.Tensor | tuple) -> None:
            weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            # The attention itself returns first, then perhaps what is wrapped around it, up to the block.
            if number in found or not _is_attention(weights, len(pixel_values)):
                return
            prefix = count_prefix(model, weights.shape[-1], grid)
            patches = weights[:, :, prefix:, prefix:].float() * distances.to(weights.device, torch.float32)
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
    """What `attention_distances` would be if all attention were the same for all tokens, in pixels.

    Raises:
        ValueError: if the model is no plain ViT.
    """
    grid = patch_grid(model, pixel_values)
    tokens = []

    def count(module: nn.Module, arguments: tuple, output: torch.Tensor | tuple) -> None:
        tokens.append(_states(model, output).shape[1])

    run_with_hooks(model, pixel_values[:1], [(find_blocks(model)[0], count)])
    count_prefix(model, tokens[0], grid)
    return distance_matrix(grid, patch_size(model)).mean().item() * grid[0] * grid[1] / tokens[0]


def singular_value_shares(model: PreTrainedModel, pixel_values: torch.Tensor, top_k: int = 5) -> torch.Tensor:
    """Share of the largest singular values of an image's patch features in the sum of all, after every block.

    The matrix `[N, D]` of an image holds the outputs of the block itself for the patches, each scaled to length 1;
    special tokens are left out, and no final norm is applied, also after the last block.

    Args:
        model: as for `attention_distances`.
        pixel_values: normalised images `[B, C, H, W]`.
        top_k: K, the number of singular values.

    Returns:
        float64 `[B, layers, K]` on the CPU: entry k is the sum of the k+1 largest values over that of all, in (0, 1].

    Raises:
        ValueError: if the model is no plain ViT, its features are not finite, or have fewer than `top_k` directions.
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
        # Far faster than the singular values of the matrix itself, and in float64 as exact as those in float32.
        if patches.shape[1] > patches.shape[2]:
            patches = patches.mT
        squares = torch.linalg.eigvalsh(patches @ patches.mT).flip(1)
        values = squares.clamp(min=0).sqrt()
        shares.append((values[:, :top_k].cumsum(dim=1) / values.sum(dim=1, keepdim=True)).cpu())

    run_with_hooks(model, pixel_values, [(block, measure) for block in find_blocks(model)])
    return torch.stack(shares, dim=1)


def _states(model: PreTrainedModel, output: torch.Tensor | tuple) -> torch.Tensor:
    """Tokens `[B, T, D]` in the output of a block."""
    states = output[0] if isinstance(output, tuple) else output
    if states.ndim != 3:
        raise ValueError(f"the blocks of {type(model).__name__} give {[*states.shape]}: it is no plain ViT")
    return states


def _is_attention(weights: object, images: int) -> bool:
    """Whether it is `[images, heads, T, T]`; attention within windows has more images."""
    return (
        isinstance(weights, torch.Tensor)
        and weights.ndim == 4
        and weights.shape[0] == images
        and weights.shape[2] == weights.shape[3]
    )


def _finite(model: PreTrainedModel, values: torch.Tensor) -> torch.Tensor:
    if not values.isfinite().all():
        raise ValueError(f"{type(model).__name__} gives values that are not finite")
    return values
