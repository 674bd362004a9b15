"""Attention maps of the CLS token: the numbers, the restored model, the picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from hf_mim import IBotConfig, IBotModel
from hf_mim.analysis.attention import cls_attention, plot_attention


SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}


@pytest.fixture(scope="module")
def vit() -> ViTModel:
    torch.manual_seed(0)
    config = ViTConfig(**SIZES, intermediate_size=48, initializer_range=0.5, hidden_dropout_prob=0.3)
    return ViTModel(config, add_pooling_layer=False)


def attention_by_hand(model, pixel_values, **options):
    """softmax(q k / sqrt(d)) of the CLS token in the last layer, from the hidden states before that layer: [B,h,T]."""
    layer = model.layers[-1]
    hidden = model(pixel_values, output_hidden_states=True, **options).hidden_states[-2]
    normed = layer.layernorm_before(hidden)
    query = layer.attention.q_proj(normed)[:, 0].unflatten(1, (3, 8))
    key = layer.attention.k_proj(normed).unflatten(2, (3, 8))
    return torch.einsum("bhd,bthd->bht", query, key).div(8**0.5).softmax(dim=2)


@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
@torch.no_grad()
def test_maps_of_a_native_vit(vit: ViTModel, size: tuple[int, int]):
    pixel_values = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    maps = cls_attention(vit, pixel_values)
    expected = attention_by_hand(vit.eval(), pixel_values, interpolate_pos_encoding=True)
    assert maps.shape == (2, 3, size[0] // 8, size[1] // 8)
    torch.testing.assert_close(maps.flatten(2), expected[:, :, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(maps.sum(dim=(2, 3)), 1 - expected[:, :, 0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_maps_of_our_own_model():
    torch.manual_seed(0)
    model = IBotModel(IBotConfig(**SIZES, intermediate_size=48, initializer_range=0.5)).eval()
    pixel_values = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    maps = cls_attention(model, pixel_values)
    expected = attention_by_hand(model, pixel_values)[:, :, 1:].unflatten(2, (3, 5))
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=0)


def test_register_tokens_are_no_patches():
    config = Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4)
    model = Dinov2WithRegistersModel(config)
    torch.nn.init.zeros_(model.encoder.layer[-1].attention.q_proj.weight)
    torch.nn.init.zeros_(model.encoder.layer[-1].attention.q_proj.bias)
    # without a query all 1 + 4 + 16 tokens get the same share
    maps = cls_attention(model, torch.randn(1, 3, 32, 32))
    torch.testing.assert_close(maps, torch.full((1, 3, 4, 4), 1 / 21))


def test_the_model_is_left_as_it_was(vit: ViTModel):
    vit.train()
    vit.layers[0].eval()
    vit.set_attn_implementation("sdpa")
    cls_attention(vit, torch.randn(1, 3, 32, 32))
    assert vit.config._attn_implementation == "sdpa"
    assert vit.training and not vit.layers[0].training and vit.layers[1].training
    with pytest.raises(ValueError):
        cls_attention(vit, torch.randn(1, 5, 32, 32))  # five channels
    assert vit.config._attn_implementation == "sdpa"
    assert vit.training


def test_models_without_a_cls_token_are_refused(vit: ViTModel):
    siglip = SiglipVisionModel(SiglipVisionConfig(**SIZES, intermediate_size=48))
    with pytest.raises(ValueError, match=r"SiglipVisionModel gives attention \[1, 3, 16, 16\] for 16 patches"):
        cls_attention(siglip, torch.randn(1, 3, 32, 32))
    swin = SwinModel(SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1], num_heads=[2], window_size=4))
    with pytest.raises(ValueError, match="need a ViT with a CLS token"):
        cls_attention(swin, torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="30x32 is not a multiple of the patch size 8"):
        cls_attention(vit, torch.randn(1, 3, 30, 32))


def test_picture_holds_the_images_and_their_maps(vit: ViTModel, tmp_path: Path):
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(2)]
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    figure = plot_attention(vit, images, processor, tmp_path / "attention.png", max_heads=2)

    assert len(figure.axes) == 2 * (1 + 2) + 2
    # In multiples of uniform attention: of 1/16 for 16 patches.
    maps = 16 * cls_attention(vit, processor(images, return_tensors="pt")["pixel_values"])
    for row, bar in enumerate(figure.axes[6:]):
        assert bar.get_ylabel() == "times uniform attention"
        assert bar.get_ylim() == pytest.approx((0, maps[row, :2].max().item()), rel=1e-5)
    for row, image in enumerate(images):
        first, *heads = figure.axes[3 * row : 3 * row + 3]
        np.testing.assert_allclose(first.images[0].get_array(), np.asarray(image) / 255, atol=1e-5)
        for number, axes in enumerate(heads):
            picture, overlay = axes.images
            np.testing.assert_allclose(overlay.get_array(), maps[row, number], atol=1e-6)
            assert overlay.get_interpolation() == "nearest"
            np.testing.assert_allclose(overlay.get_extent(), picture.get_extent())
            assert axes.get_title() == f"head {number + 1}"
    assert [file.name for file in tmp_path.iterdir()] == ["attention.png"]
    with Image.open(tmp_path / "attention.png") as picture:
        assert picture.width > picture.height


def test_picture_of_gray_images(tmp_path: Path):
    model = IBotModel(IBotConfig(**SIZES, intermediate_size=48, num_channels=1))
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4], image_std=[0.2])
    image = Image.linear_gradient("L").resize((32, 32))
    figure = plot_attention(model, [image], processor, tmp_path / "attention.png")
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), np.asarray(image) / 255, atol=1e-5)


def test_nothing_to_draw_is_an_error(vit: ViTModel, tmp_path: Path):
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    with pytest.raises(ValueError, match="at least one image and one head, not 0 and 6"):
        plot_attention(vit, [], processor, tmp_path / "attention.png")
