"""
Blockwise and random masks of the patches that the student does not see, for many views at once.

A mask is a function of one 64-bit seed. Every random number is a hash of (seed, counter), so a mask does not depend on
which other masks are drawn with it, on the worker that draws it, or on how often a generator was used before.

Blocks are placed on all masks of a batch in parallel. Meanwhile a grid is stored as bits: a 64-bit word holds as many
whole rows as fit into it or, for a wider grid, 64 columns of one row.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np


# Start and length of the range of a block's log aspect ratio: from log(0.3) to log(1 / 0.3).
LOG_ASPECT_RATIO = math.log(0.3)
LOG_ASPECT_RATIO_SPAN = math.log(1 / 0.3) - LOG_ASPECT_RATIO
TRIES_PER_BLOCK = 10
# Most blocks fit at the first try, so large batches compute only a few tries at first.
FIRST_TRIES, LARGE_BATCH = 2, 64

# Counters of a mask: two to choose its ratio, then either four for every try of every block, or one per cell.
ENTRY, RATIO, FIRST_FREE = 0, 1, 2
DRAWS_PER_BLOCK = 4 * TRIES_PER_BLOCK


class MaskGenerator:
    """
    Draw boolean masks over a grid of patches (`ImageFolderMask` in `loader.py` of the original iBOT code).

    The ratio of masked patches is drawn per mask: one entry of `pred_ratio` is chosen uniformly, then a value within
    the half-width around it. By default every second mask is empty, and the others cover 10 to 50 % of the patches.

    A block is always smaller than the grid in both directions, so `"block"` masks nothing on a single row or column.

    Args:
        grid_size (`tuple[int, int]`): Height and width in patches.
        pred_ratio (`float` or `Sequence[float]`, defaults to `(0.0, 0.3)`): Ratio of masked patches in [0, 1], or
            several to choose from.
        pred_ratio_var (`float` or `Sequence[float]`, defaults to `(0.0, 0.2)`): Half-width (not a variance) around
            each ratio, or one for all.
        pred_shape (`"block"` or `"rand"`, defaults to `"block"`): `"block"` places rectangles of aspect ratio 0.3 to
            1/0.3 until the ratio is reached: never more, often one or two patches fewer. `"rand"` masks exactly
            int(ratio * height * width) patches anywhere.
        pred_start_epoch (`int`, defaults to 0): Masks are empty in the epochs before this one.

    Raises:
        ValueError: For a size, shape or ratio out of range.
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
        _check_grid(grid_size)
        if pred_shape not in ("block", "rand"):
            raise ValueError(f"pred_shape must be 'block' or 'rand', not {pred_shape!r}")
        self.pred_shape = pred_shape
        self.pred_start_epoch = pred_start_epoch
        self.lowest, self.highest = _ratio_ranges(pred_ratio, pred_ratio_var)
        self._blocks = _Blocks(self.height, self.width, smallest=(min(grid_size) // 3) ** 2)

    def __call__(self, seeds: np.ndarray, epoch: int) -> np.ndarray:
        """
        Draw one mask per seed.

        Args:
            seeds (`np.ndarray` of shape `(M,)`): uint64, see [`mask_seeds`].
            epoch (`int`): Current epoch, from 0; only compared with `pred_start_epoch`.

        Returns:
            `np.ndarray` of shape `(M, height, width)`: bool, True = masked.
        """
        masks = np.zeros((len(seeds), self.height, self.width), dtype=bool)
        if epoch >= self.pred_start_epoch:
            targets = self._draw_ratios(seeds) * self.height * self.width
            # Below one patch nothing can be masked.
            some = (targets >= 1).nonzero()[0]
            draw = self._blocks.draw if self.pred_shape == "block" else self._draw_cells
            masks[some] = draw(seeds[some], targets[some])
        return masks

    def _draw_ratios(self, seeds: np.ndarray) -> np.ndarray:
        """Draw the ratio of masked patches per seed, float64 [M]."""
        choice, position = uniforms(seeds, np.array([ENTRY, RATIO])).T
        entry = (choice * len(self.lowest)).astype(int)
        return self.lowest[entry] + (self.highest - self.lowest)[entry] * position

    def _draw_cells(self, seeds: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Mask the int(target) cells with the lowest random numbers."""
        numbers = uniforms(seeds, FIRST_FREE + np.arange(self.height * self.width))
        highest = np.take_along_axis(np.sort(numbers, axis=1), targets[:, None].astype(int) - 1, axis=1)
        return (numbers <= highest).reshape(-1, self.height, self.width)


class BlockMaskGenerator:
    """
    Draw blockwise masks of a number of patches (`masking_generator.py` of BEiT v2, and of dBOT's branch `beit`).

    Rectangles of aspect ratio 0.3 to 1/0.3 are placed until the number is reached or ten tries for a rectangle fail.
    BEiT v2 then fills up with single patches anywhere, so that the number is always exact. (It would also remove
    patches from masks with too many, but no mask has too many: no rectangle adds more than what is missing.) BEiT and
    dBOT do not fill up.

    Args:
        grid_size (`tuple[int, int]`): Height and width in patches.
        num_masking_patches (`int`, defaults to 75): Number of masked patches, from 1 to height * width. BEiT v2 masks
            75 of 14 x 14.
        min_mask_patches_per_block (`int`, defaults to 16): Smallest area of a rectangle, at least 1. If it exceeds
            what a rectangle may still add, the area is drawn between the two.
        max_mask_patches_per_block (`int`, *optional*): Maximum number of patches that a rectangle adds, at least 1.
        exact (`bool`, defaults to `True`): Fill up to the exact number with single patches.

    Raises:
        ValueError: For a number out of range.
    """

    def __init__(
        self,
        grid_size: tuple[int, int],
        num_masking_patches: int = 75,
        min_mask_patches_per_block: int = 16,
        max_mask_patches_per_block: int | None = None,
        exact: bool = True,
    ):
        self.height, self.width = grid_size
        _check_grid(grid_size)
        if not 1 <= num_masking_patches <= self.height * self.width:
            raise ValueError(
                f"num_masking_patches must lie between 1 and the {self.height * self.width} patches of the "
                f"{self.height} x {self.width} grid, not {num_masking_patches}"
            )
        largest = math.inf if max_mask_patches_per_block is None else max_mask_patches_per_block
        for name, value in (
            ("min_mask_patches_per_block", min_mask_patches_per_block),
            ("max_mask_patches_per_block", largest),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.num_masking_patches, self.exact = num_masking_patches, exact
        self._blocks = _Blocks(self.height, self.width, min_mask_patches_per_block, largest)

    def __call__(self, seeds: np.ndarray) -> np.ndarray:
        """
        Draw one mask per seed.

        Args:
            seeds (`np.ndarray` of shape `(M,)`): uint64, see [`mask_seeds`].

        Returns:
            `np.ndarray` of shape `(M, height, width)`: bool, True = masked; `num_masking_patches` of them per mask,
            or at most that many if not `exact`.
        """
        wanted, cells = self.num_masking_patches, self.height * self.width
        masks = self._blocks.draw(seeds, np.full(len(seeds), float(wanted))).astype(bool).reshape(-1, cells)
        short = (masks.sum(axis=1) < wanted).nonzero()[0] if self.exact else np.arange(0)
        # No mask takes more than `cells` blocks, so these counters are still unused.
        numbers = uniforms(seeds[short], FIRST_FREE + DRAWS_PER_BLOCK * cells + np.arange(cells))
        numbers[masks[short]] = -1
        chosen = np.argpartition(numbers, wanted - 1, axis=1)[:, :wanted]
        masks[short[:, None], chosen] = True
        return masks.reshape(-1, self.height, self.width)


class _Blocks:
    """
    Place rectangles on many masks in parallel.

    Args:
        height, width (`int`): Size of the grid in patches.
        smallest (`int`): Lower bound of the drawn areas.
        largest (`float`, defaults to infinity): Maximum number of patches that a rectangle may add.
    """

    def __init__(self, height: int, width: int, smallest: int, largest: float = math.inf):
        self.height, self.width, self.smallest, self.largest = height, width, smallest, largest
        self._rows_per_word = max(1, 64 // width)
        self._rows_above = _bits_below(height, self._rows_per_word, width)
        self._columns_before = _bits_below(width, 64, 1)
        self._sides = np.array([height, width], dtype=np.float64).reshape(2, 1, 1)
        self._places = self._sides + 1

    def draw(self, seeds: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """
        Add blocks to every mask, until no mask takes another one.

        Args:
            seeds (`np.ndarray` of shape `(M,)`): uint64.
            targets (`np.ndarray` of shape `(M,)`): float64, number of patches to mask.

        Returns:
            `np.ndarray` of shape `(M, height, width)`: uint8, 0 and 1.
        """
        masks = np.zeros((len(self._rows_above) * len(self._columns_before), len(seeds)), dtype=np.uint64)
        counts = np.zeros(len(seeds))
        states = _mix(np.asarray(seeds, dtype=np.uint64))
        steps = _steps(FIRST_FREE + np.arange(DRAWS_PER_BLOCK)).reshape(4, TRIES_PER_BLOCK, 1)
        next_block = _steps(np.array(DRAWS_PER_BLOCK))
        unfinished = np.arange(len(seeds))
        waiting = unfinished[:0]
        while len(unfinished) + len(waiting):
            all_tries = len(unfinished) < LARGE_BATCH
            if all_tries:
                unfinished, waiting = np.concatenate([unfinished, waiting]), waiting[:0]
            missing = (targets - counts).take(unfinished)
            numbers = _uniforms((steps if all_tries else steps[:, :FIRST_TRIES]) + states.take(unfinished))
            placed, blocks, sizes = self._next_block(
                masks.take(unfinished, axis=1), numbers, np.minimum(missing, self.largest)
            )
            if not all_tries:
                waiting = np.concatenate([waiting, unfinished[~placed]])
            unfinished = unfinished[placed]
            masks[:, unfinished] |= blocks
            counts[unfinished] += sizes
            states[unfinished] += next_block
            unfinished = unfinished[missing[placed] - sizes >= 1]
        return self._unpack(masks)

    def _next_block(
        self, masks: np.ndarray, numbers: np.ndarray, budgets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Choose a block for each of A masks: the first of T tries that fits.

        Args:
            masks (`np.ndarray` of shape `(words, A)`): uint64, the masks so far.
            numbers (`np.ndarray` of shape `(4, T, A)`): float64 in [0, 1): area, aspect ratio, row and column of each
                try. Overwritten.
            budgets (`np.ndarray` of shape `(A,)`): float64, number of patches that a block may add.

        Returns:
            `tuple[np.ndarray, np.ndarray, np.ndarray]`: `placed`, bool [A], False where no try fits; `blocks`, uint64
            [words, placed.sum()]; `sizes`, float64 [placed.sum()], the patches that each block adds to its mask.
        """
        area, aspect, starts = numbers[0], numbers[1], numbers[2:]
        # If the smallest area exceeds the budget, the area is drawn between the two all the same.
        area *= budgets - self.smallest
        area += self.smallest
        aspect *= LOG_ASPECT_RATIO_SPAN
        aspect += LOG_ASPECT_RATIO
        np.exp(aspect, out=aspect)
        sides = np.empty_like(starts)
        np.multiply(area, aspect, out=sides[0])
        np.divide(area, aspect, out=sides[1])
        np.rint(np.sqrt(sides, out=sides), out=sides)
        # An oversized block becomes an empty one, which adds nothing and is rejected below.
        shorter = sides < self._sides
        sides *= shorter[0] & shorter[1]
        starts *= self._places - sides
        np.floor(starts, out=starts)

        (top, left), (bottom, right) = starts.astype(np.intp), (starts + sides).astype(np.intp)
        rows = self._rows_above.take(bottom, axis=1) ^ self._rows_above.take(top, axis=1)
        columns = self._columns_before.take(right, axis=1) ^ self._columns_before.take(left, axis=1)
        # The factor from `rows` has one bit per row, at its first column: the product repeats the columns there.
        blocks = (rows[:, None] * columns).reshape(len(masks), *top.shape)
        overlap = np.add.reduce(np.bitwise_count(blocks & masks[:, None]), axis=0, dtype=np.int64)
        added = sides[0] * sides[1] - overlap

        fits = (added > 0) & (added <= budgets)
        placed = fits.any(axis=0)
        mask = placed.nonzero()[0]
        attempt = fits.argmax(axis=0)[mask]
        return placed, blocks[:, attempt, mask], added[attempt, mask]

    def _unpack(self, masks: np.ndarray) -> np.ndarray:
        """Unpack uint64 [words, M] to uint8 [M, height, width] of 0 and 1."""
        octets = np.ascontiguousarray(masks.T, dtype="<u8").view(np.uint8)
        bits = np.unpackbits(octets, axis=1, bitorder="little")
        words, columns = len(self._rows_above), self._rows_per_word * self.width
        bits = bits.reshape(len(bits), words, 64 * len(self._columns_before))[..., :columns]
        return bits.reshape(len(bits), words * self._rows_per_word, self.width)[:, : self.height]


def mask_seeds(seed: int, epoch: int | np.ndarray, indices: np.ndarray, views: int) -> np.ndarray:
    """
    Return seeds for the masks of every view of some samples, uint64 [len(indices), views].

    A seed depends only on (seed, epoch, index of the sample, number of the view), and nearby arguments give unrelated
    seeds.

    Args:
        seed (`int`): Seed of the run, at least 0.
        epoch (`int` or `np.ndarray`): One epoch for all samples, or an int array with one for each.
        indices (`np.ndarray`): Indices of the samples.
        views (`int`): Views per sample.
    """
    key = _mix(_mix(np.array([seed], dtype=np.uint64)) + np.asarray(epoch).astype(np.uint64))
    key = _mix(key + np.asarray(indices).astype(np.uint64))
    return _mix(key[:, None] + np.arange(views, dtype=np.uint64))


def uniforms(seeds: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Return a random number in [0, 1) for every pair of seed and counter: uint64 [M], int [C] -> float64 [M, C]."""
    return _uniforms(_mix(np.asarray(seeds, dtype=np.uint64)) + _steps(counters)[:, None]).T


def _steps(counters: np.ndarray) -> np.ndarray:
    return counters.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _uniforms(states: np.ndarray) -> np.ndarray:
    bits = _mix(states)
    bits >>= np.uint64(11)
    return bits * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's output function (Steele, Lea and Flood 2014), a bijection of uint64 that mixes all bits."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _bits_below(length: int, per_word: int, stride: int) -> np.ndarray:
    """
    Return the bit masks of all positions below n, for every n from 0 to `length`: uint64 [words, length + 1].

    A word holds `per_word` positions, `stride` bits apart.
    """
    position = np.arange(length)
    bits = np.zeros((-(-length // per_word), length + 1), dtype=np.uint64)
    bits[position // per_word, position + 1] = np.uint64(1) << (position % per_word * stride).astype(np.uint64)
    return np.add.accumulate(bits, axis=1)


def _check_grid(grid_size: tuple[int, int]) -> None:
    if min(grid_size) < 1:
        raise ValueError(f"grid_size must be at least 1 x 1 patch, not {grid_size[0]} x {grid_size[1]}")


def _ratio_ranges(
    ratio: float | Sequence[float], half_width: float | Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest ratio of each entry, float64 [entries] each."""
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
