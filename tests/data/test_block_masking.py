"""Masks of an exact number of patches, against the statistics of the original generator."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mim.data.masking import BlockMaskGenerator, mask_seeds, uniforms


STATISTICS = json.loads((Path(__file__).parents[1] / "golden" / "beitv2" / "masking_stats.json").read_text())
EXACT = {name: case for name, case in STATISTICS.items() if "args" in case}


def generator_of(arguments: dict) -> BlockMaskGenerator:
    return BlockMaskGenerator(
        tuple(arguments["input_size"]),
        arguments["num_masking_patches"],
        arguments["min_num_patches"],
        arguments["max_num_patches"],
    )


@pytest.fixture(scope="module", params=EXACT)
def case_and_masks(request):
    case = EXACT[request.param]
    return case, generator_of(case["args"])(mask_seeds(7, 0, np.arange(4000), 1)[:, 0])


def neighbor_pairs(masks: np.ndarray) -> np.ndarray:
    """Pairs of masked patches side by side or one above the other, int [M]."""
    rows = (masks[:, 1:] & masks[:, :-1]).sum(axis=(1, 2))
    return rows + (masks[:, :, 1:] & masks[:, :, :-1]).sum(axis=(1, 2))


def components(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of connected regions (4 neighbors) per mask and the size of the largest, int [M] each."""
    count, height, width = masks.shape
    labels = np.pad(np.arange(1, height * width + 1).reshape(1, height, width) * masks, ((0, 0), (1, 1), (1, 1)))
    while True:
        inner = labels[:, 1:-1, 1:-1]
        neighbors = [labels[:, :-2, 1:-1], labels[:, 2:, 1:-1], labels[:, 1:-1, :-2], labels[:, 1:-1, 2:]]
        spread = np.maximum.reduce([inner, *neighbors]) * masks
        if np.array_equal(spread, inner):
            break
        labels[:, 1:-1, 1:-1] = spread
    sizes = np.stack([np.bincount(mask.ravel(), minlength=height * width + 1)[1:] for mask in inner])
    return (sizes > 0).sum(axis=1), sizes.max(axis=1)


def test_the_number_is_always_exact(case_and_masks):
    case, masks = case_and_masks
    counts = masks.sum(axis=(1, 2))
    assert counts.min() == counts.max() == case["count_min"] == case["count_max"]


def test_place_is_the_originals(case_and_masks):
    case, masks = case_and_masks
    expected = np.array(case["per_patch_mask_frequency"])
    found = masks.mean(axis=0)
    assert np.abs(found - expected).max() <= 0.05
    # Five standard errors over the whole map, which is much sharper than the tolerance of a single patch.
    error = np.sqrt(expected * (1 - expected) * (1 / len(masks) + 1 / case["draws"]))
    assert (np.abs(found - expected) <= 5 * error + 1e-3).all()
    corners = found[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    assert corners == pytest.approx(case["corner_freq"], abs=0.02)


def test_texture_is_the_originals(case_and_masks):
    case, masks = case_and_masks
    pairs = neighbor_pairs(masks)
    assert pairs.mean() == pytest.approx(case["masked_neighbour_pairs_mean"], rel=0.03)
    assert pairs.std() == pytest.approx(case["masked_neighbour_pairs_std"], rel=0.1)
    regions, largest = components(masks[:2000])
    assert regions.mean() == pytest.approx(case["components_mean_500"], rel=0.1)
    assert largest.mean() == pytest.approx(case["largest_component_mean_500"], rel=0.05)


def test_masks_that_are_not_exact_are_the_same_without_the_last_step():
    """Before patches are added, the counts are those of BEiT v1's generator, which stops there."""
    expected = STATISTICS["beit1_14x14_75_min16_count_distribution"]
    seeds = mask_seeds(7, 0, np.arange(4000), 1)[:, 0]
    blocks = BlockMaskGenerator((14, 14), exact=False)(seeds)
    counts = blocks.sum(axis=(1, 2))
    assert counts.mean() == pytest.approx(expected["mean"], abs=0.1)
    assert counts.std() == pytest.approx(expected["std"], rel=0.15)
    assert (counts == 75).mean() == pytest.approx(expected["frac_equal_75"], abs=0.04)
    # What is added lies anywhere else.
    masks = BlockMaskGenerator((14, 14))(seeds)
    assert not (blocks & ~masks).any()
    numbers = uniforms(seeds, 2 + 40 * 196 + np.arange(196)).reshape(masks.shape)
    for mask, block, number in zip(masks, blocks, numbers, strict=True):
        added = mask & ~block
        assert not added.any() or number[added].max() < number[~mask].min()


@pytest.mark.parametrize(
    ("arguments", "digest"),
    [
        (((14, 14),), "049e79be5033c7a9"),
        (((14, 14), 118, 4, 40), "74651a242c0eeeaa"),
        (((10, 16), 60), "e3ec6708240b36bf"),
        (((8, 8), 25), "fc9e71b40aeca520"),
    ],
)
def test_the_masks_of_a_seed_never_change(arguments, digest):
    masks = BlockMaskGenerator(*arguments)(mask_seeds(11, 2, np.arange(400), 1)[:, 0])
    assert hashlib.sha256(np.packbits(masks).tobytes()).hexdigest()[:16] == digest


@settings(max_examples=80, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    share=st.floats(0, 1),
    smallest=st.integers(1, 40),
    largest=st.none() | st.integers(1, 60),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_grid_gets_the_exact_number_from_the_seed_alone(grid, share, smallest, largest, seed):
    wanted = max(1, round(share * grid[0] * grid[1]))
    generator = BlockMaskGenerator(grid, wanted, smallest, largest)
    seeds = mask_seeds(seed, 0, np.arange(8), 1)[:, 0]
    masks = generator(seeds)
    assert masks.shape == (8, *grid) and masks.dtype == bool
    assert (masks.sum(axis=(1, 2)) == wanted).all()

    np.testing.assert_array_equal(generator(seeds[::-1]), masks[::-1])
    for one, mask in zip(seeds, masks, strict=True):
        np.testing.assert_array_equal(generator(np.array([one]))[0], mask)


def test_a_batch_of_any_size_gives_the_same_masks():
    # Large batches look at the first tries of a block only before they look at the others.
    seeds = mask_seeds(3, 1, np.arange(500), 1)[:, 0]
    generator = BlockMaskGenerator((14, 14))
    np.testing.assert_array_equal(generator(seeds), np.concatenate([generator(part) for part in np.split(seeds, 20)]))
    assert generator(seeds[:0]).shape == (0, 14, 14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid_size": (0, 5)}, "grid_size must be at least 1 x 1 patch, not 0 x 5"),
        ({"num_masking_patches": 0}, "num_masking_patches must lie between 1 and the 196 patches of the 14 x 14 grid"),
        ({"num_masking_patches": 197}, "not 197"),
        ({"min_mask_patches_per_block": 0}, "min_mask_patches_per_block must be at least 1, not 0"),
        ({"max_mask_patches_per_block": 0}, "max_mask_patches_per_block must be at least 1, not 0"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BlockMaskGenerator(**{"grid_size": (14, 14), **arguments})
