"""The quick start's pictures: how many, which, and that the two splits are apart."""

import sys

import numpy as np
import pytest
from datasets import Image

from hf_mim.data.images import decode_image
from hf_mim.data.photo_tiles import load_photo_tiles


pytest.importorskip("skimage")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def train():
    return load_photo_tiles("train")


@pytest.fixture(scope="module")
def test():
    return load_photo_tiles("test")


def test_counts_and_names(train, test):
    assert (len(train), len(test)) == (2421, 807)
    assert train.features == test.features
    assert train.features["image"] == Image(decode=False)
    names = train.features["label"].names
    assert len(names) == 18 and names[0] == "astronaut" and names[-1] == "rocket"
    # The coins are 384 x 303 pixels: 12 rows (of the shorter side) by 15 columns.
    coins = names.index("coins")
    assert (train["label"].count(coins), test["label"].count(coins)) == (135, 45)


def test_every_photograph_is_in_both_splits(train, test):
    for split in (train, test):
        assert np.bincount(split["label"], minlength=18).min() >= 36


def test_tiles_are_rgb_of_32_pixels(train):
    for row in train.select(range(0, len(train), 97)):
        image = decode_image(row["image"])
        assert image.size == (32, 32) and image.mode == "RGB"


def test_tiles_are_cut_row_by_row_from_the_resized_photograph(train, test):
    """The astronaut, 512 x 512 pixels, put together again from both splits."""
    from PIL import Image as PIL
    from skimage.data import astronaut

    tiles = {row["image"]["path"]: decode_image(row["image"]) for split in (train, test) for row in split}
    photo = PIL.new("RGB", (384, 384))
    for number in range(144):
        photo.paste(tiles[f"astronaut_{number:03d}.png"], (number % 12 * 32, number // 12 * 32))
    expected = PIL.fromarray(astronaut()).resize((384, 384), PIL.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(photo), np.asarray(expected))


def test_splits_are_disjoint(train, test):
    paths = [{row["path"] for row in split["image"]} for split in (train, test)]
    assert not paths[0] & paths[1] and len(paths[0]) + len(paths[1]) == 2421 + 807
    assert all(int(path[-7:-4]) % 4 == 3 for path in paths[1])


def test_nothing_is_random(test):
    again = load_photo_tiles("test")
    assert again["image"][:] == test["image"][:] and again["label"][:] == test["label"][:]


def test_other_splits_are_refused():
    with pytest.raises(ValueError, match="no split 'validation', only test, train"):
        load_photo_tiles("validation")


@pytest.mark.parametrize("package", ["skimage", "sklearn"])
def test_a_missing_package_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'scikit-image and scikit-learn: pip install "hf_mim\[demo\]"'):
        load_photo_tiles()
