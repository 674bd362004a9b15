"""Patches, special tokens and forward options of every kind of vision model."""

import pytest
import torch
from transformers import (
    BertConfig,
    ConvNextConfig,
    DeiTConfig,
    DeiTModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedConfig,
    ResNetConfig,
    SegformerConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from hf_mim import IBotConfig, IBotModel, IBotSwinConfig, IBotSwinModel
from hf_mim.utils.vision import (
    count_prefix,
    feature_stride,
    forward_options,
    patch_grid,
    patch_size,
    show_all_patches,
)


SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}


@pytest.mark.parametrize(
    ("config", "size", "grid", "stride"),
    [
        (ViTConfig(**SIZES), (8, 8), (3, 5), (8, 8)),
        (ViTConfig(**{**SIZES, "patch_size": (4, 8)}), (4, 8), (6, 5), (4, 8)),
        (SwinConfig(**SWIN), (4, 4), (6, 10), (8, 8)),
        (IBotSwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 1]), (4, 4), (3, 5), (8, 8)),
        (ConvNextConfig(num_stages=2, depths=[1, 1], hidden_sizes=[8, 8]), (4, 4), (6, 10), (8, 8)),
        (ResNetConfig(), None, None, (32, 32)),
        # It has one patch size per stage.
        (SegformerConfig(), None, None, (32, 32)),
        (BertConfig(), None, None, (32, 32)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PreTrainedConfig) else "",
)
def test_patches(config, size, grid, stride):
    assert patch_size(config) == size
    assert patch_grid(config, (24, 40)) == grid
    assert feature_stride(config) == stride


def test_the_grid_of_images_that_patches_do_not_fill():
    assert patch_grid(ViTConfig(**SIZES), (31, 33)) == (3, 4)
    # Ours with a Swin Transformer pads; the mean patch stands in front.
    config = IBotSwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 1])
    assert patch_grid(config, (31, 33)) == (4, 5)
    states = IBotSwinModel(config)(torch.zeros(1, 3, 36, 36)).last_hidden_state
    assert patch_grid(config, (36, 36)) == (5, 5) and states.shape[1] == 1 + 25


@pytest.mark.parametrize(
    ("model_class", "config", "prefix"),
    [
        (SiglipVisionModel, SiglipVisionConfig(**SIZES), 0),
        (ViTModel, ViTConfig(**SIZES), 1),
        (IBotModel, IBotConfig(**{name: SIZES[name] for name in SIZES if name != "intermediate_size"}), 1),
        (DeiTModel, DeiTConfig(**SIZES), 2),
        (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4), 5),
        (ViTMAEModel, ViTMAEConfig(**SIZES), 1),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
@torch.no_grad()
def test_every_vit_takes_images_of_another_size(model_class, config, prefix):
    """All patches are there, in row-major order, behind the special tokens."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    show_all_patches(model)
    images = torch.randn(2, 3, 24, 40)
    grid = patch_grid(model.config, (24, 40))
    options = forward_options(model, 2, grid)
    states = model(images, **options).last_hidden_state
    assert count_prefix(model, states.shape[1], grid) == prefix
    assert states.shape[1] == prefix + 15
    assert torch.equal(states, model(images, **options).last_hidden_state)


def test_position_embeddings_are_interpolated_and_nothing_is_hidden():
    vit, mae = ViTModel(ViTConfig(**SIZES)), ViTMAEModel(ViTMAEConfig(**SIZES))
    assert forward_options(vit, 2, (3, 5)) == {"interpolate_pos_encoding": True}
    # Our models interpolate without being asked.
    assert forward_options(IBotModel(IBotConfig(hidden_size=24, num_attention_heads=3)), 2, (3, 5)) == {}
    options = forward_options(mae, 2, (3, 5))
    assert sorted(options) == ["interpolate_pos_encoding", "noise"]
    assert torch.equal(options["noise"], torch.arange(15.0).expand(2, -1))
    assert mae.config.mask_ratio == 0.75
    show_all_patches(mae)
    assert mae.config.mask_ratio == 0.0
    show_all_patches(vit)
    assert not hasattr(vit.config, "mask_ratio")


@torch.no_grad()
def test_a_mae_that_sees_everything_is_a_vit():
    torch.manual_seed(0)
    mae, vit = ViTMAEModel(ViTMAEConfig(**SIZES)).eval(), ViTModel(ViTConfig(**SIZES), add_pooling_layer=False).eval()
    vit.load_state_dict(mae.state_dict())
    show_all_patches(mae)
    images = torch.randn(2, 3, 32, 32)
    states = mae(images, **forward_options(mae, 2, (4, 4))).last_hidden_state
    torch.testing.assert_close(states, vit(images).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_tokens_that_do_not_fit_are_refused():
    mae = ViTMAEModel(ViTMAEConfig(**SIZES))
    tokens = mae(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape[1]
    with pytest.raises(ValueError, match="ViTMAEModel has 5 tokens for 4x4 patches: it is not a plain ViT"):
        count_prefix(mae, tokens, (4, 4))
    with pytest.raises(ValueError, match="SwinModel has 16 tokens for 8x8 patches"):
        count_prefix(SwinModel(SwinConfig(**SWIN)), 16, (8, 8))
