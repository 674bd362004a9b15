"""
Window attention of the Swin Transformer that iBOT trains ([Liu et al., 2021](https://arxiv.org/abs/2103.14030)).

Shapes: B images, S patches per side of a stage's map, C channels of the stage, W windows of w x w patches, h attention
heads with d channels each.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_ibot_swin import IBotSwinConfig
from .layers import eager_attention_forward, relative_position_bias


def to_windows(patches: torch.Tensor, window: int) -> torch.Tensor:
    """Split `[B, S, S, C]` into windows `[B, W, w·w, C]`; windows and their patches are in row-major order."""
    per_side = patches.shape[1] // window
    return (
        patches.unflatten(2, (per_side, window))
        .unflatten(1, (per_side, window))
        .transpose(2, 3)
        .flatten(3, 4)
        .flatten(1, 2)
    )


def from_windows(windows: torch.Tensor, window: int) -> torch.Tensor:
    """Merge windows `[B, W, w·w, C]` into `[B, S, S, C]`, the inverse of [`to_windows`]."""
    per_side = math.isqrt(windows.shape[1])
    patches = windows.unflatten(2, (window, window)).unflatten(1, (per_side, per_side))
    return patches.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def shift_mask(side: int, window: int, shift: int, like: torch.Tensor) -> torch.Tensor:
    """
    Return what is added to the attention logits of shifted windows, `[W, w·w, w·w]`: -100 between patches that the
    cyclic shift has brought together from opposite edges of a map of `side` x `side` patches, 0 elsewhere.
    """
    position = torch.arange(side, device=like.device)
    region = (position >= side - window).long() + (position >= side - shift).long()
    regions = to_windows((3 * region[:, None] + region)[None, :, :, None], window)[0, :, :, 0]
    return (regions[:, None] != regions[:, :, None]).to(like.dtype) * -100.0


class IBotSwinRelativePositionBias(nn.Module):
    """A learned bias for each head and each offset between two patches of a window."""

    def __init__(self, window: int, num_heads: int):
        super().__init__()
        self.window = window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))

    def forward(self) -> torch.Tensor:
        """Return the bias `[h, w·w, w·w]`, query before key."""
        return relative_position_bias(self.relative_position_bias_table, (self.window, self.window))


class IBotSwinAttention(nn.Module):
    """Multi-head self-attention within windows."""

    def __init__(self, config: IBotSwinConfig, width: int, num_heads: int, window: int):
        super().__init__()
        self.config = config
        self.head_dim = width // num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        # Without this attribute, the sdpa interface uses causal attention.
        self.is_causal = False
        self.q_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, width)
        self.relative_position_bias = IBotSwinRelativePositionBias(window, num_heads)

    def forward(
        self,
        windows: torch.Tensor,
        mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Attend within each window.

        Args:
            windows (`[B, W, w·w, C]`): Patches of each window.
            mask (`[W, w·w, w·w]`, *optional*): Added to the attention logits of every head.

        Returns:
            `[B, W, w·w, C]` and, with eager attention, the weights `[B·W, h, w·w, w·w]`.
        """
        batch_size, num_windows, length, _ = windows.shape
        bias = self.relative_position_bias()
        # Windows are treated as images or, if each has its own mask, as heads, so that no mask is copied per image.
        rows = batch_size * num_windows
        if mask is not None:
            bias, rows = (bias + mask[:, None]).flatten(0, 1), batch_size
        query, key, value = (
            projection(windows)
            .unflatten(-1, (-1, self.head_dim))
            .transpose(2, 3)
            .reshape(rows, -1, length, self.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            # Under autocast, the projections have another dtype than the table.
            bias[None].to(query.dtype),
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        if mask is not None:
            output = output.unflatten(2, (num_windows, -1)).transpose(1, 2)
        if weights is not None:
            weights = weights.reshape(batch_size * num_windows, -1, length, length)
        return self.o_proj(output.reshape(windows.shape)), weights


__all__ = ["IBotSwinAttention", "IBotSwinRelativePositionBias", "from_windows", "shift_mask", "to_windows"]
