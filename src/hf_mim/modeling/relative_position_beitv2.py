"""
Relative position bias of BEiT v2 (`modeling_finetune.py`) and its interpolation (`run_class_finetuning.py`).

Shapes: a window of H x W patches, N = H·W, h attention heads.
"""

import contextlib
import functools

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import nn

from .configuration_beitv2 import Beitv2Config
from .layers import relative_position_bias


# Devices without double precision: Apple's GPUs.
WITHOUT_DOUBLE = ("mps",)


class Beitv2RelativePositionBias(nn.Module):
    """
    A learned bias for each head and each offset between two patches, added to the attention logits.

    The table `[(2H-1)(2W-1) + 3, h]` lists the offsets (query row - key row, query column - key column) in row-major
    order, starting at (1-H, 1-W); then CLS token to patch, patch to CLS token, and CLS token to itself.
    """

    def __init__(self, config: Beitv2Config):
        super().__init__()
        self.grid_size = config.grid_size
        height, width = self.grid_size
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * height - 1) * (2 * width - 1) + 3, config.num_attention_heads)
        )

    def forward(self, grid: tuple[int, int]) -> torch.Tensor:
        """Return the bias `[1, h, 1+N, 1+N]`, query before key, for a `grid` of H x W patches after the CLS token."""
        table = self.resized_table(grid)
        patches = relative_position_bias(table[:-3], grid)
        num_patches = grid[0] * grid[1]
        cls_to_patch, patch_to_cls, cls_to_cls = table[-3:, :, None, None].unbind()
        first_row = torch.cat((cls_to_cls, cls_to_patch.expand(-1, -1, num_patches)), dim=2)
        other_rows = torch.cat((patch_to_cls.expand(-1, num_patches, -1), patches), dim=2)
        return torch.cat((first_row, other_rows), dim=1).unsqueeze(0)

    def resized_table(self, grid: tuple[int, int]) -> torch.Tensor:
        """
        Return the table for another `grid`, interpolated by a cubic spline along each axis. The known offsets lie on a
        geometric sequence, which is denser near 0, so that the entries of small offsets hardly change. The three
        entries of the CLS token are kept.

        The original loader does this for square windows; here, each axis has its own sequence.
        """
        table = self.relative_position_bias_table
        if grid == self.grid_size:
            return table
        known, sides = [2 * side - 1 for side in self.grid_size], [2 * side - 1 for side in grid]
        # Where it exists, double precision costs nothing here and rounds only once.
        device = table.device.type
        dtype = torch.float32 if device in WITHOUT_DOUBLE else torch.float64
        rows, columns = (spline_matrix(*pair).to(dtype).to(table.device) for pair in zip(known, sides, strict=True))
        # Autocast does not change double precision.
        with torch.autocast(device, enabled=False) if dtype == torch.float32 else contextlib.nullcontext():
            offsets = torch.einsum("ai,bj,ijh->abh", rows, columns, table[:-3].to(dtype).unflatten(0, known))
        return torch.cat((offsets.flatten(0, 1).to(table.dtype), table[-3:]))

    @torch.no_grad()
    def resize(self, grid: tuple[int, int]):
        """Replace the table by the one for `grid`."""
        requires_grad = self.relative_position_bias_table.requires_grad
        self.relative_position_bias_table = nn.Parameter(self.resized_table(grid).clone(), requires_grad)
        self.grid_size = grid


# A custom operator, so that torch.compile and torch.export call it instead of tracing it.
@torch.library.custom_op("hf_mim::spline_matrix", mutates_args=())
def spline_matrix(known: int, wanted: int) -> torch.Tensor:
    """
    Return the matrix `float64 [wanted, known]` that interpolates a table of offsets along one axis.

    Args:
        known (`int`): Number of offsets in the table, odd; the middle one is 0.
        wanted (`int`): Number of offsets to interpolate, odd.
    """
    # A new tensor for each call: one created in inference mode could not be used in training later.
    return torch.tensor(_spline_matrix(known, wanted), dtype=torch.float64)


@spline_matrix.register_fake
def _(known: int, wanted: int) -> torch.Tensor:
    return torch.empty(wanted, known, dtype=torch.float64)


@functools.lru_cache(maxsize=64)
def _spline_matrix(known: int, wanted: int) -> np.ndarray:
    if known == wanted:
        return np.eye(known)
    if known == 1:
        return np.ones((wanted, 1))
    half, reach = known // 2, wanted // 2
    positive = np.cumsum(_geometric_ratio(half, reach) ** np.arange(half))
    positions = np.concatenate((-positive[::-1], [0.0], positive))
    targets = np.arange(-reach, reach + 1).clip(positions[0], positions[-1])
    return make_interp_spline(positions, np.eye(known), k=min(3, known - 1))(targets)


def _geometric_ratio(terms: int, total: int) -> float:
    """Find by bisection the ratio q in [1.01, 1.5] for which the sum of `terms` terms 1 + q + q² + … is `total`."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**terms) / (1 - ratio) > total:
            high = ratio
        else:
            low = ratio
    return ratio


__all__ = ["Beitv2RelativePositionBias", "spline_matrix"]
