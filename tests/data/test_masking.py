"""Masks against the statistics of the original generator, and against its algorithm written as a plain loop."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mim.data.masking import MaskGenerator, mask_seeds, uniforms


STATISTICS = json.loads(
    (Path(__file__).parents[1] / "golden" / "ibot" / "mask_statistics.json").read_text(encoding="utf-8")
)["settings"]
DRAWS = 10_000


def plain_block_mask(seed: int, height: int, width: int, target: float) -> np.ndarray:
    """One block mask, try by try, with the random numbers that the generator uses for this seed."""

    def draw(placement: int, which: int, attempt: int) -> float:
        return uniforms(np.array([seed]), np.array([2 + 40 * placement + 10 * which + attempt])).item()

    mask = np.zeros((height, width), dtype=bool)
    count = placement = 0
    while count < target:
        budget, placed = target - count, 0
        for attempt in range(10):
            low = (min(height, width) // 3) ** 2
            area = low + (budget - low) * draw(placement, 0, attempt)
            aspect = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * draw(placement, 1, attempt))
            block_height, block_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if block_width < width and block_height < height:
                top = int(draw(placement, 2, attempt) * (height - block_height + 1))
                left = int(draw(placement, 3, attempt) * (width - block_width + 1))
                block = mask[top : top + block_height, left : left + block_width]
                new = block.size - block.sum()
                if 0 < new <= budget:
                    block[:] = True
                    placed = new
                    break
        if placed == 0:
            break
        count += placed
        placement += 1
    return mask


def adjacent_pairs(masks: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Per mask: neighbors along an axis that are both masked, and neighbors of which at least one is."""
    masks = np.moveaxis(masks, axis, -1)
    first, second = masks[..., 1:], masks[..., :-1]
    return (first & second).sum(axis=(1, 2)), (first | second).sum(axis=(1, 2))


@pytest.fixture(scope="module", params=STATISTICS, ids=lambda setting: setting["name"])
def setting_and_masks(request):
    setting = request.param
    generator = MaskGenerator(
        tuple(setting["grid"]),
        setting["pred_ratio"],
        setting["pred_ratio_var"],
        setting["pred_shape"],
        setting["pred_start_epoch"],
    )
    seeds = mask_seeds(7, 0, np.arange(DRAWS), 1)[:, 0]
    return setting, generator(seeds, 0 if setting["epoch"] is None else setting["epoch"])


def test_share_of_masked_patches_is_the_originals(setting_and_masks):
    setting, masks = setting_and_masks
    ratios = masks.mean(axis=(1, 2))
    error = math.hypot(ratios.std() / math.sqrt(DRAWS), setting["standard_error_of_mean"])
    assert abs(ratios.mean() - setting["mean_ratio"]) <= 5 * error
    assert ratios.std() == pytest.approx(setting["std_ratio"], rel=0.15, abs=1e-9)

    empty = (ratios == 0).mean()
    share = setting["share_zero"]
    assert abs(empty - share) <= 5 * math.sqrt(share * (1 - share) * (1 / DRAWS + 1 / setting["draws"]))
    if setting["mean_ratio_nonzero"] is not None:
        full = ratios[ratios > 0]
        draws = setting["draws"] * (1 - share)
        error = full.std() * math.sqrt(1 / len(full) + 1 / draws)
        assert abs(full.mean() - setting["mean_ratio_nonzero"]) <= 5 * error


def test_number_of_masked_patches_is_the_originals(setting_and_masks):
    setting, masks = setting_and_masks
    counts = masks.sum(axis=(1, 2))
    highest = np.max(np.add(setting["pred_ratio"], setting["pred_ratio_var"]))
    budget = highest * masks[0].size if setting["max_masked"] else 0
    assert setting["max_masked"] - 2 <= counts.max() <= budget

    # Both distribution functions, compared at every count (Kolmogorov-Smirnov, p = 1e-6).
    histogram = np.zeros(masks[0].size + 1)
    histogram[[int(count) for count in setting["histogram"]]] = list(setting["histogram"].values())
    ours = np.bincount(counts, minlength=len(histogram))
    distance = np.abs(ours.cumsum() / DRAWS - histogram.cumsum() / setting["draws"]).max()
    assert distance <= 2.7 * math.sqrt(1 / DRAWS + 1 / setting["draws"])


def test_place_and_texture_are_the_originals(setting_and_masks):
    setting, masks = setting_and_masks
    expected = np.array(setting["position_mean"])
    share = (masks.sum(axis=0) + expected * setting["draws"]) / (DRAWS + setting["draws"])
    error = np.sqrt(share * (1 - share) * (1 / DRAWS + 1 / setting["draws"]))
    # The stored map is rounded to four decimals.
    assert (np.abs(masks.mean(axis=0) - expected) <= 5 * error + 1e-4).all()

    for axis, key in ((2, "masked_run_h"), (1, "masked_run_v")):
        both, either = adjacent_pairs(masks, axis)
        if setting[key] is None:
            assert either.sum() == 0
        else:
            run = both.sum() / either.sum()
            deviation = (both - run * either).std() / either.mean()
            assert abs(run - setting[key]) <= 5 * deviation * math.sqrt(1 / DRAWS + 1 / setting["draws"])


@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (3, 3), (13, 5), (2, 9), (1, 6), (28, 20), (9, 64), (9, 65)])
@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.75])
def test_block_masks_equal_a_plain_loop(grid, ratio):
    seeds = mask_seeds(3, 1, np.arange(12), 2).ravel()
    masks = MaskGenerator(grid, ratio, 0.0)(seeds, 0)
    expected = [plain_block_mask(seed, *grid, ratio * grid[0] * grid[1]) for seed in seeds]
    np.testing.assert_array_equal(masks, expected)


@pytest.mark.parametrize(
    ("arguments", "digest"),
    [
        (((14, 14),), "4caeea5a6cff7e09"),
        (((14, 14), 0.7, 0.1), "437eecea8ea87ac9"),
        (((7, 7), 0.5, 0.5), "bb36bd6ae4a070e2"),
        (((13, 5), 0.5, 0.3), "6f0a8ae1bc43995d"),
        (((2, 9), 0.3, 0.3), "69457cf1a027bd61"),
        (((48, 48), 0.6, 0.3), "9e36743000d859d6"),
        (((9, 64), (0.2, 0.4), 0.2), "cedc3066356d8082"),
        (((9, 65), (0.2, 0.4), 0.2), "727057a1dcabf57e"),
        (((24, 130), 0.4, 0.3), "10054d48b0147811"),
        (((14, 14), (0, 0.3), (0, 0.2), "rand"), "0555eb7d8843604b"),
        (((5, 70), 0.5, 0.5, "rand"), "6ab23c28fe2e56cd"),
    ],
)
def test_the_masks_of_a_seed_never_change(arguments, digest):
    # SHA-256 of the masks of 3 epochs x 200 samples x 2 views.
    generator = MaskGenerator(*arguments)
    packed = [np.packbits(generator(mask_seeds(11, epoch, np.arange(200), 2).ravel(), 0)) for epoch in range(3)]
    assert hashlib.sha256(np.concatenate(packed).tobytes()).hexdigest()[:16] == digest


grids = st.one_of(
    st.sampled_from([(1, 1), (1, 7), (6, 1), (3, 3), (13, 5), (14, 14)]),
    st.tuples(st.integers(1, 16), st.integers(1, 16)),
)


@settings(max_examples=60, deadline=None)
@given(
    grid=grids,
    ratio=st.floats(0, 1),
    width=st.floats(0, 1),
    shape=st.sampled_from(["block", "rand"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_mask_keeps_its_budget_and_depends_on_its_seed_only(grid, ratio, width, shape, seed):
    width *= min(ratio, 1 - ratio)
    generator = MaskGenerator(grid, ratio, width, shape)
    seeds = mask_seeds(seed, 0, np.arange(5), 2).ravel()
    masks = generator(seeds, 0)
    assert masks.shape == (10, *grid) and masks.dtype == bool
    assert (masks.sum(axis=(1, 2)) <= (ratio + width) * grid[0] * grid[1] + 1e-9).all()

    np.testing.assert_array_equal(generator(seeds[::-1], 3), masks[::-1])
    for one, mask in zip(seeds, masks, strict=True):
        np.testing.assert_array_equal(generator(np.array([one]), 0)[0], mask)


@settings(max_examples=40, deadline=None)
@given(grid=grids, ratio=st.floats(0, 1))
def test_rand_masks_the_exact_number_of_patches(grid, ratio):
    counts = MaskGenerator(grid, ratio, 0.0, "rand")(np.arange(20, dtype=np.uint64), 0).sum(axis=(1, 2))
    assert (counts == int(ratio * grid[0] * grid[1])).all()


@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (9, 1)])
def test_no_block_fits_into_a_single_row_or_column(grid):
    assert not MaskGenerator(grid, 0.7, 0.0)(np.arange(50, dtype=np.uint64), 0).any()


@pytest.mark.parametrize("shape", ["block", "rand"])
def test_masks_are_empty_before_pred_start_epoch(shape):
    seeds = mask_seeds(0, 0, np.arange(30), 1)[:, 0]
    late = MaskGenerator((14, 14), 0.4, 0.1, shape, pred_start_epoch=5)
    assert not late(seeds, 4).any()
    always = MaskGenerator((14, 14), 0.4, 0.1, shape)
    np.testing.assert_array_equal(late(seeds, 5), always(seeds, 0))
    assert late(seeds, 5).any(axis=(1, 2)).all()


def test_scalars_and_single_entries_mean_the_same():
    seeds = np.arange(64, dtype=np.uint64)
    expected = MaskGenerator((10, 12), 0.4, 0.1)(seeds, 0)
    np.testing.assert_array_equal(MaskGenerator((10, 12), [0.4], [0.1])(seeds, 0), expected)
    np.testing.assert_array_equal(MaskGenerator((10, 12), [0.4, 0.4], 0.1)(seeds, 0), expected)


def test_a_range_may_reach_zero_and_one():
    masks = MaskGenerator((4, 4), [0.1, 0.9], 0.1, "rand")(np.arange(500, dtype=np.uint64), 0)
    counts = masks.sum(axis=(1, 2))
    assert counts.min() == 0 and counts.max() == 15


def test_no_seeds_give_no_masks():
    for shape in ("block", "rand"):
        masks = MaskGenerator((4, 5), pred_shape=shape)(np.zeros(0, dtype=np.uint64), 0)
        assert masks.shape == (0, 4, 5) and masks.dtype == bool


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid_size": (0, 5)}, "grid_size must be at least 1 x 1 patch, not 0 x 5"),
        ({"pred_shape": "ring"}, "pred_shape must be 'block' or 'rand', not 'ring'"),
        ({"pred_ratio": 1.2, "pred_ratio_var": 0}, r"pred_ratio must lie in \[0, 1\], not 1.2"),
        ({"pred_ratio": float("nan"), "pred_ratio_var": 0}, r"pred_ratio must lie in \[0, 1\], not nan"),
        ({"pred_ratio": [0, 0.3], "pred_ratio_var": 0.1}, "pred_ratio 0 with pred_ratio_var 0.1 leaves"),
        ({"pred_ratio": 0.9, "pred_ratio_var": 0.2}, r"\[0, 0.1\]"),
        ({"pred_ratio": 0.9, "pred_ratio_var": -0.1}, "pred_ratio_var -0.1"),
        ({"pred_ratio": [0, 0.3, 0.5], "pred_ratio_var": [0, 0.2]}, "3 values and pred_ratio_var 2"),
        ({"pred_ratio": []}, "0 values"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskGenerator(**{"grid_size": (14, 14), **arguments})


def test_seeds_tell_every_argument_apart():
    tables = [
        mask_seeds(seed, epoch, np.arange(100), 12) for seed in (0, 1, 2, 2**64 - 1) for epoch in (0, 1, 2, 1000)
    ]
    assert tables[0].shape == (100, 12) and tables[0].dtype == np.uint64
    assert len(np.unique(tables)) == 4 * 4 * 100 * 12
    np.testing.assert_array_equal(mask_seeds(1, 2, np.array([70, 3]), 4), mask_seeds(1, 2, np.arange(100), 4)[[70, 3]])
    epochs, indices = np.array([5, 0, 7]), np.array([2, 2, 90])
    one_by_one = [mask_seeds(1, epoch, np.array([index]), 3)[0] for epoch, index in zip(epochs, indices, strict=True)]
    np.testing.assert_array_equal(mask_seeds(1, epochs, indices, 3), one_by_one)
    # Neighboring arguments change about half of the 64 bits.
    flips = np.bitwise_count(tables[0][:-1] ^ tables[0][1:])
    assert abs(flips.mean() - 32) < 1


def test_hash_numbers_are_uniform_and_independent():
    numbers = uniforms(np.arange(400, dtype=np.uint64), np.arange(500))
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    # Chi-square with 99 degrees of freedom exceeds 175 with probability 4e-6.
    assert ((counts - 2000) ** 2 / 2000).sum() < 175
    centered = numbers - 0.5
    for shifted in (centered[1:] * centered[:-1], centered[:, 1:] * centered[:, :-1]):
        assert abs(shifted.mean()) < 5 / 12 / math.sqrt(shifted.size)
