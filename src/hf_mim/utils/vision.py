"""How a vision model of transformers cuts images into patches, and how it is made to process any size in full."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel


# Pixels between the last features of a convolutional network whose configuration has no patch size.
CONVOLUTIONAL_STRIDE = 32


def patch_size(config: PreTrainedConfig) -> tuple[int, int] | None:
    """Return height and width of a patch in pixels, or None for a model without a (single) patch size."""
    size = getattr(config, "patch_size", None)
    if isinstance(size, int):
        return size, size
    if isinstance(size, Sequence) and len(size) == 2:
        return size[0], size[1]
    return None


def patch_grid(config: PreTrainedConfig, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """
    Return rows and columns of the patches that a model cuts an image into, or None without a patch size.

    For a hierarchical model, such as a Swin Transformer, these are the patches of its first stage. The exception is
    our iBOT with a Swin Transformer, whose `token_stride` gives those of its output.

    Args:
        config (`PreTrainedConfig`): Configuration of the model.
        image_size (`tuple[int, int]`): Height and width in pixels.
    """
    height, width = image_size
    stride = getattr(config, "token_stride", None)
    if stride is not None:
        # It pads what does not fill a token.
        return math.ceil(height / stride), math.ceil(width / stride)
    size = patch_size(config)
    return None if size is None else (height // size[0], width // size[1])


def feature_stride(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the pixels between neighboring features in a model's output, down and across."""
    size = patch_size(config)
    if size is None:
        return CONVOLUTIONAL_STRIDE, CONVOLUTIONAL_STRIDE
    # Each further stage of Swin, ConvNeXt and similar models halves the rows and columns.
    halvings = len(getattr(config, "depths", [None])) - 1
    return size[0] * 2**halvings, size[1] * 2**halvings


def count_prefix(model: PreTrainedModel, num_tokens: int, grid: tuple[int, int]) -> int:
    """
    Return the number of tokens in front of the patches: CLS, a distillation token, registers.

    Args:
        model (`PreTrainedModel`): A ViT.
        num_tokens (`int`): Tokens per image in its output.
        grid (`tuple[int, int]`): Rows and columns of patches.

    Raises:
        ValueError: If the number of tokens does not fit a ViT that processes every patch.
    """
    rows, columns = grid
    prefix = num_tokens - rows * columns
    # Nothing; CLS; CLS and DeiT's distillation token; CLS and registers.
    if prefix not in (0, 1, 2, 1 + (getattr(model.config, "num_register_tokens", 0) or 0)):
        raise ValueError(
            f"{type(model).__name__} has {num_tokens} tokens for {rows}x{columns} patches: it is not a plain ViT, or "
            "it leaves out patches"
        )
    return prefix


def show_all_patches(model: PreTrainedModel) -> None:
    """Make a ViTMAE process all patches instead of a random quarter, once it also gets [`forward_options`]."""
    if hasattr(model.config, "mask_ratio"):
        model.config.mask_ratio = 0.0


def forward_options(model: PreTrainedModel, batch_size: int, grid: tuple[int, int]) -> dict[str, Any]:
    """
    Return keyword arguments for `forward` with which a vision model accepts images of any size.

    A ViT interpolates its position embeddings. A ViTMAE, which shuffles the patches, gets a noise that keeps their
    order.

    Args:
        model (`PreTrainedModel`): A vision model of transformers.
        batch_size (`int`): Number of images.
        grid (`tuple[int, int]`): Rows and columns of patches.
    """
    options: dict[str, Any] = {}
    if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        options["interpolate_pos_encoding"] = True
    if model.config.model_type == "vit_mae":
        noise = torch.arange(grid[0] * grid[1], dtype=torch.float32, device=model.device)
        options["noise"] = noise.expand(batch_size, -1)
    return options
