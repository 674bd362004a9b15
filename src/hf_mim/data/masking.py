"""Which patches the student does not see: iBOT's blockwise and random masks, for many views at once.

A mask is a function of one 64-bit seed. Every random number is a hash of (seed, counter), so a mask does not depend on
which other masks are drawn with it, on the worker that draws it, or on how often a generator was used before.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np


ASPECT_RATIO_RANGE = (0.3, 1 / 0.3)
TRIES_PER_BLOCK = 10

# A mask's counters: two to choose its ratio, then either four for each try of each block, or one for each cell.
ENTRY, RATIO, FIRST_FREE = 0, 1, 2


class MaskGenerator:
    """Draw boolean masks over a grid of patches (`ImageFolderMask` in `loader.py` of the original iBOT code).

    The share of masked patches is drawn per mask: one entry of `pred_ratio` is picked uniformly, then a value between
    that ratio - half-width and ratio + half-width. The default leaves every second mask empty and covers 10 to 50 % of
    the others.

    Args:
        grid_size: (height, width) in patches.
        pred_ratio: share of masked patches in [0, 1], or several of them to choose from.
        pred_ratio_var: half-width (not a variance) around each ratio; one value stands for all.
        pred_shape: "block" places rectangles of aspect ratio 0.3 to 1/0.3 until the share is reached: never more,
            often one or two patches less. "rand" masks exactly int(share * height * width) patches anywhere.
        pred_start_epoch: masks are empty in the epochs before this one.

    A block is always smaller than the grid in both directions, so "block" masks nothing on a single row or column.

    Raises:
        ValueError: for a size, shape or ratio outside these ranges.
    """

    def __init__(
        self,
        grid_size: tuple[int, int],
        pred_ratio: float | Sequence[float] = (0.0, 0.3),
        pred_ratio_var: float | Sequence[float] = (0.0, 0.2),
        pred_shape: Literal["block", "rand"] = "block",
        pred_start_epoch: int = 0,
    ):
        self.height, self.width = grid_size
        if min(grid_size) < 1:
            raise ValueError(f"grid_size must be at least 1 x 1 patch, not {self.height} x {self.width}")
        if pred_shape not in ("block", "rand"):
            raise ValueError(f"pred_shape must be 'block' or 'rand', not {pred_shape!r}")
        self.pred_shape = pred_shape
        self.pred_start_epoch = pred_start_epoch
        self.lowest, self.highest = _ratio_ranges(pred_ratio, pred_ratio_var)

    def __call__(self, seeds: np.ndarray, epoch: int) -> np.ndarray:
        """Draw one mask per seed.

        Args:
            seeds: uint64 [M], see `mask_seeds`.
            epoch: current epoch, from 0; only compared with `pred_start_epoch`.

        Returns:
            bool [M, height, width], True = masked.
        """
        if epoch < self.pred_start_epoch:
            return np.zeros((len(seeds), self.height, self.width), dtype=bool)
        targets = self._draw_ratios(seeds) * self.height * self.width
        return self._draw_blocks(seeds, targets) if self.pred_shape == "block" else self._draw_cells(seeds, targets)

    def _draw_ratios(self, seeds: np.ndarray) -> np.ndarray:
        """Share of masked patches per seed, float64 [M]."""
        choice, position = uniforms(seeds, np.array([ENTRY, RATIO])).T
        entry = (choice * len(self.lowest)).astype(int)
        return self.lowest[entry] + (self.highest - self.lowest)[entry] * position

    def _draw_cells(self, seeds: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Mask the int(target) cells with the lowest random numbers."""
        cells = self.height * self.width
        order = uniforms(seeds, FIRST_FREE + np.arange(cells)).argsort(axis=1)
        masks = np.zeros((len(seeds), cells), dtype=bool)
        np.put_along_axis(masks, order, np.arange(cells) < targets.astype(int)[:, None], axis=1)
        return masks.reshape(-1, self.height, self.width)

    def _draw_blocks(self, seeds: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Add one block to every unfinished mask, until no mask takes another."""
        masks = np.zeros((len(seeds), self.height, self.width), dtype=bool)
        counts = np.zeros(len(seeds))
        placement = 0
        unfinished = np.arange(len(seeds))
        # Below one patch of budget no block can be placed, so these masks need not try.
        while len(unfinished := unfinished[targets[unfinished] - counts[unfinished] >= 1]):
            budgets = targets[unfinished] - counts[unfinished]
            placed, blocks, sizes = self._next_block(masks[unfinished], seeds[unfinished], budgets, placement)
            unfinished = unfinished[placed]
            masks[unfinished] |= blocks
            counts[unfinished] += sizes
            placement += 1
        return masks

    def _next_block(
        self, masks: np.ndarray, seeds: np.ndarray, budgets: np.ndarray, placement: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose a block for each of A masks: all tries side by side, the first that fits counts.

        Args:
            masks: bool [A, height, width], what is masked so far.
            seeds: uint64 [A].
            budgets: float64 [A], number of patches that may still be masked.
            placement: how many blocks were placed before.

        Returns:
            placed: bool [A], False where none of the tries fits.
            blocks: bool [placed.sum(), height, width].
            sizes: float [placed.sum()], patches that the block adds to its mask.
        """
        height, width = self.height, self.width
        draws = 4 * TRIES_PER_BLOCK
        counters = FIRST_FREE + placement * draws + np.arange(draws)
        area, aspect, row, column = uniforms(seeds, counters).reshape(len(seeds), 4, TRIES_PER_BLOCK).swapaxes(0, 1)

        # The smallest area may exceed the budget; the area is then drawn between the two all the same.
        smallest = (min(height, width) // 3) ** 2
        area = smallest + (budgets[:, None] - smallest) * area
        log_low, log_high = np.log(ASPECT_RATIO_RANGE)
        aspect = np.exp(log_low + (log_high - log_low) * aspect)
        block_height = np.rint(np.sqrt(area * aspect)).astype(int)
        block_width = np.rint(np.sqrt(area / aspect)).astype(int)
        # An oversized block becomes an empty one, which adds nothing and is refused below.
        inside = (block_height < height) & (block_width < width)
        block_height, block_width = block_height * inside, block_width * inside
        top = (row * (height - block_height + 1)).astype(int)
        left = (column * (width - block_width + 1)).astype(int)

        rows = _between(height, top, block_height)
        columns = _between(width, left, block_width)
        # rows @ masks @ columns, for every try at once, counts the patches of a block that are masked already.
        overlap = np.einsum("ath,ath->at", rows, columns @ masks.transpose(0, 2, 1).astype(np.float32))
        added = block_height * block_width - overlap

        fits = (added > 0) & (added <= budgets[:, None])
        placed = fits.any(axis=1)
        chosen = np.flatnonzero(placed), fits[placed].argmax(axis=1)
        return placed, rows[chosen][:, :, None] * columns[chosen][:, None, :] > 0, added[chosen]


def mask_seeds(seed: int, epoch: int, indices: np.ndarray, views: int) -> np.ndarray:
    """Seeds for the masks of every view of some samples, uint64 [len(indices), views].

    Each one depends on (seed, epoch, index of the sample, number of the view) and on nothing else, and nearby
    arguments give unrelated seeds.
    """
    key = _mix(_mix(np.array([seed], dtype=np.uint64)) + np.uint64(epoch))
    key = _mix(key + np.asarray(indices).astype(np.uint64))
    return _mix(key[:, None] + np.arange(views, dtype=np.uint64))


def uniforms(seeds: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Random numbers in [0, 1) for every pair of seed and counter: uint64 [M], int [C] -> float64 [M, C]."""
    steps = counters.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = _mix(_mix(np.asarray(seeds, dtype=np.uint64))[:, None] + steps)
    return (bits >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood 2014): a bijection of uint64 in which every bit counts."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _between(length: int, start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """1 at start <= x < start + size, else 0, for x below length: int [A, T] twice -> float32 [A, T, length]."""
    below = np.tri(length + 1, length, -1, dtype=np.float32)
    return below[start + size] - below[start]


def _ratio_ranges(
    ratio: float | Sequence[float], half_width: float | Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest ratio of each entry, float64 [entries] each."""
    ratios = np.atleast_1d(np.asarray(ratio, dtype=np.float64))
    spreads = np.atleast_1d(np.asarray(half_width, dtype=np.float64))
    if len(spreads) == 1:
        spreads = spreads.repeat(len(ratios))
    if len(ratios) == 0 or len(ratios) != len(spreads):
        raise ValueError(
            f"pred_ratio has {len(ratios)} values and pred_ratio_var {len(spreads)}: "
            "give one half-width for each ratio, or one for all"
        )
    for value, spread in zip(ratios, spreads, strict=True):
        if not 0 <= value <= 1:
            raise ValueError(f"pred_ratio must lie in [0, 1], not {value:g}")
        if not (0 <= spread <= value and value + spread <= 1):
            raise ValueError(
                f"pred_ratio {value:g} with pred_ratio_var {spread:g} leaves [0, 1]: the half-width must lie in "
                f"[0, {min(value, 1 - value):g}]"
            )
    return ratios - spreads, ratios + spreads
