"""Pictures of what a training hides."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_mim.analysis.masks import GRAY, plot_masks


def shown(figure) -> list[np.ndarray]:
    return [axes.images[0].get_array() for axes in figure.axes]


def test_masked_patches_are_gray(tmp_path):
    views = torch.randint(0, 256, (2, 2, 3, 8, 16), dtype=torch.uint8)
    masks = torch.zeros(2, 2, 8, dtype=torch.bool)
    masks[1, 0, 5] = True  # second row, second column of 2 x 4 patches
    figure = plot_masks(views, masks, tmp_path / "masks.png")
    pictures = shown(figure)
    expected = views.flatten(0, 1).permute(0, 2, 3, 1).numpy() / 255
    expected[2, 4:8, 4:8] = GRAY
    assert len(pictures) == 4 and all(np.allclose(a, b) for a, b in zip(pictures, expected, strict=True))
    assert [axes.get_title() for axes in figure.axes] == ["0% masked", "0% masked", "12% masked", "0% masked"]
    with Image.open(tmp_path / "masks.png") as picture:
        picture.verify()


def test_one_view_and_one_channel(tmp_path):
    views = torch.full((3, 1, 8, 8), 102, dtype=torch.uint8)
    masks = torch.tensor([[True, False, False, True]] * 3)
    pictures = shown(plot_masks(views, masks, tmp_path / "masks.png"))
    assert len(pictures) == 3 and pictures[0].shape == (8, 8, 3)
    assert np.allclose(pictures[0][:4, 4:], 0.4) and np.allclose(pictures[0][:4, :4], GRAY)


def test_patches_that_are_not_square(tmp_path):
    with pytest.raises(ValueError, match="5 patches do not divide views of 8x8 pixels"):
        plot_masks(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 5, dtype=torch.bool), tmp_path / "m.png")
